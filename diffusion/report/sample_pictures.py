"""The report's pictures of samples: the montage's tiles, rows by class, and nearest training images."""

import base64
from typing import Any

import numpy as np

from diffusion.images.pictures import png_bytes, sheet
from diffusion.images.store import Images, ImageStore
from diffusion.report.neighbours import nearest

TILE = 10  # images of a cell in the montage: for ten classes that are asked in turn, one each
TILE_COLUMNS = 5
PER_CLASS = 10
CLASSES = 20  # rows at most
NEIGHBOURS = 10  # samples shown with their nearest training image
COMPARED = 1000  # images at most whose nearest neighbours are looked up


def data_uri(png: bytes) -> str:
    """The PNG inside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def tile(store: ImageStore) -> Images:
    """A cell's first images as one picture: every cell shows the same indices, so the same noise."""
    return sheet(store.images[:TILE], TILE_COLUMNS)


def class_rows(store: ImageStore, classes: list[str]) -> list[dict[str, Any]]:
    """A row of samples for each class that has any, in label order; empty without labels."""
    if store.labels is None:
        return []
    rows = []
    for label in range(len(classes))[:CLASSES]:
        indices = np.flatnonzero(store.labels == label)[:PER_CLASS]
        if len(indices):
            rows.append(
                {
                    "name": classes[label],
                    "count": len(indices),
                    "image": data_uri(png_bytes(sheet(store.images[indices], PER_CLASS))),
                }
            )
    return rows


def neighbour_pairs(store: ImageStore, train: ImageStore, test: ImageStore) -> dict[str, Any]:
    """The samples that lie nearest to a training image, with it, and what is usual for unseen real images.

    Distances are root mean squares over pixels, in grey levels.
    """
    found = nearest(store.images[:COMPARED], train.images)
    unseen = nearest(test.images[:COMPARED], train.images)
    pairs = []
    for index in np.argsort(found.distances, kind="stable")[:NEIGHBOURS]:
        row = int(found.rows[index])
        pair = np.stack([store.images[index], train.images[row]])
        pairs.append(
            {
                "index": int(index),
                "row": row,
                "distance": f"{found.distances[index]:.1f}",
                "image": data_uri(png_bytes(sheet(pair, 1))),
            }
        )
    return {
        "pairs": pairs,
        "compared": len(found.rows),
        "unseen": len(unseen.rows),
        "sample_median": f"{np.median(found.distances):.1f}",
        "unseen_median": f"{np.median(unseen.distances):.1f}",
        "sample_least": f"{found.distances.min():.1f}",
        "unseen_least": f"{unseen.distances.min():.1f}",
        "copies": int((found.distances == 0).sum()),
    }
