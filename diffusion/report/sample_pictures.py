"""Pictures of samples in the report: the montage, rows by class, and nearest training images."""

import base64
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.images.pictures import png_bytes, sheet
from diffusion.images.store import Images, ImageStore

TILE = 10  # images per cell in the montage: one of each class for ten classes in turn
TILE_COLUMNS = 5
PER_CLASS = 10
MAX_PICTURED = 100  # classes with pictures; 1,000 would take tens of megabytes
NEIGHBOURS = 10  # samples shown with their nearest training image
TRAIN_BLOCK = 2048
PIXEL_BLOCK = 16_384  # values of an image that are compared at a time: with TRAIN_BLOCK 134 MB in float32
MAX_COMPARED = 1000  # images with a search for nearest neighbours


def data_uri(png: bytes) -> str:
    """Return the PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def tile(store: ImageStore) -> Images:
    """Return a cell's first images as one picture. All cells show the same indices, so the same noise."""
    return sheet(store.images[:TILE], TILE_COLUMNS)


def real_images(store: ImageStore, labels: Sequence[int] | None, count: int) -> Images:
    """Return up to `count` images of a store, with these labels in their order if both have any.

    The images of a class repeat if they are too few. A class without any has white images.
    """
    if store.labels is None or labels is None:
        return store.images[:count]
    rows = {label: cycle(np.flatnonzero(store.labels == label)) for label in set(labels)}
    chosen = [next(rows[label], None) for label in labels[:count]]
    white = np.full(store.images.shape[1:], 255, np.uint8)
    return np.stack([white if row is None else store.images[row] for row in chosen])


def class_rows(store: ImageStore, real: ImageStore, classes: list[str]) -> list[dict[str, Any]]:
    """Return a row of samples and of real images for each class, in label order; empty without labels.

    Classes after the first MAX_PICTURED have a name only.
    """
    if store.labels is None:
        return []
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        if label >= MAX_PICTURED and label in store.labels:
            rows.append({"name": name})
        elif made := _of_class(store, label):
            rows.append({"name": name, **made, "real": _of_class(real, label)})
    return rows


def _of_class(store: ImageStore, label: int) -> dict[str, Any] | None:
    """Return the picture of the first images of a class, and their number; None without any."""
    if store.labels is None or label not in store.labels:
        return None
    images = store.images[np.flatnonzero(store.labels == label)[:PER_CLASS]]
    return {"count": len(images), "image": data_uri(png_bytes(sheet(images, PER_CLASS)))}


def neighbour_pairs(store: ImageStore, train: ImageStore, test: ImageStore) -> dict[str, Any]:
    """Return the samples nearest to a training image, and distances of unseen images in grey levels."""
    rows, distances = nearest(store.images[:MAX_COMPARED], train.images)
    _, unseen = nearest(test.images[:MAX_COMPARED], train.images)
    order = np.argsort(distances, kind="stable")[:NEIGHBOURS]
    pairs = np.stack([store.images[order], train.images[rows[order]]], axis=1)
    return {
        "pairs": [
            {
                "index": int(index),
                "row": int(rows[index]),
                "distance": f"{distances[index]:.1f}",
                "image": data_uri(png_bytes(sheet(pair, 1))),
            }
            for index, pair in zip(order, pairs, strict=True)
        ],
        "compared": len(rows),
        "unseen": len(unseen),
        "sample_median": f"{np.median(distances):.1f}",
        "unseen_median": f"{np.median(unseen):.1f}",
        "sample_least": f"{distances.min():.1f}",
        "unseen_least": f"{unseen.min():.1f}",
        "copies": int((distances == 0).sum()),
    }


def nearest(images: Images, train: Images) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for N images (N, H, W, C) the nearest rows of `train` (M, H, W, C), and their distances.

    A distance is the root mean square difference over pixels and channels, 0 to 255.
    """
    best = np.full(len(images), np.inf)
    rows = np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(train), TRAIN_BLOCK):
        squared = _relative_distances(images, train[start : start + TRAIN_BLOCK])
        closest = squared.argmin(axis=1)
        values = squared[np.arange(len(images)), closest]
        better = values < best
        best[better], rows[better] = values[better], start + closest[better]
    pairs = zip(images, rows, strict=True)
    means = [np.square(image.astype(np.float64) - train[row]).mean() for image, row in pairs]
    return rows, np.sqrt(means)


def _relative_distances(images: Images, block: Images) -> NDArray[np.float32]:
    """Return ‖a − b‖² − ‖a‖² (N, M) for images a and b, in blocks of pixels."""
    queries, others = (values.reshape(len(values), -1) for values in (images, block))
    squared = np.zeros((len(queries), len(others)), np.float32)
    for start in range(0, queries.shape[1], PIXEL_BLOCK):
        ours, theirs = (
            values[:, start : start + PIXEL_BLOCK].astype(np.float32) for values in (queries, others)
        )
        squared += np.square(theirs).sum(axis=1) - 2 * ours @ theirs.T
    return squared
