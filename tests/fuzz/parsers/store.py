"""An image store: its meta.json, or arrays with a valid meta.json."""

import io
import json
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from diffusion.images import store
from diffusion.images.store_meta import CellMeta, PreparedMeta, StoreMeta
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError
from tests.fuzz.repairs import correct_checksum

COUNT = 3
SAID = {"count": COUNT, "digest": "d" * 64, "name": "digits", "classes": ["0", "1"]}
CELL = {**SAID, "card": {"steps": 3, "eta": 0.5, "clip": True, "noise": "small", "none": None}}
SPLIT = {
    **SAID,
    "split": "train",
    "counts": [2, 1],
    "image_size": 2,
    "channels": 1,
    "options": {},
    "sources": {"a": "b"},
}


@cache
def seeds() -> list[bytes]:
    """Return meta.json of a cell and of a split, images and labels."""
    images, labels = np.zeros((COUNT, 2, 2, 1), np.uint8), np.array([0, 0, 1])
    return [json.dumps(add_checksum(message)).encode() for message in (CELL, SPLIT)] + [
        _array(images),
        _array(labels),
    ]


def _array(values: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


def repair(data: bytes) -> bytes:
    """Correct the checksum of meta.json."""
    return correct_checksum(data)


def parse(path: Path) -> None:
    """Open the store with the input as one of its files."""
    data, folder = path.read_bytes(), path.parent / "store"
    meta, _, images, labels = seeds()
    folder.mkdir()
    files = {"meta.json": meta, "images.npy": images, "labels.npy": labels}
    place = "meta.json" if data[:1] != b"\x93" else "labels.npy" if b"<i8" in data[:128] else "images.npy"
    for name, content in {**files, place: data}.items():
        (folder / name).write_bytes(content)
    with patch.object(store, "verify"):  # the digest is not what is tried here
        opened = store.open_store(folder, StoreMeta)
    if place == "meta.json" and not any(map(_is_valid, (CellMeta, PreparedMeta), (opened, opened))):
        raise DiffctlError("it is no cell and no split")
    assert len(np.array(opened.images)) == COUNT


def _is_valid(kind: type[StoreMeta], opened: store.ImageStore) -> bool:
    try:
        store.open_store(opened.path, kind, unverified=True)
    except DiffctlError:
        return False
    return True
