"""Batch files of CIFAR and of the downsampled ImageNet: a dict of flattened images and their labels."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.file_arrays import FileArray, file_array, integers, open_npz
from diffusion.data.readers.pickles import read_pickle
from diffusion.images.store import Labels
from diffusion.system.errors import DiffctlError, printable


def read_batch(
    path: Path, label_key: str, *, first_label: int, classes: int, pixels: int
) -> tuple[FileArray, Labels]:
    """Return images (n, pixels) uint8, unread, and labels counted from 0, of a pickle or an npz.

    DiffctlError if images and labels do not match each other or the data set.
    """
    try:
        if path.suffix == ".npz":
            images: FileArray = open_npz(path, "data")
            labels = integers(_checked_labels(images, open_npz(path, label_key)))
        else:
            batch = read_pickle(path)
            images = file_array(entry(batch, "data", path))
            labels = integers(entry(batch, label_key, path))
    except TypeError as error:
        raise DiffctlError(f"{printable(path)} has {error}: it is not a batch of this set") from None
    labels = labels - first_label
    if images.dtype != np.uint8 or images.shape != (len(labels), pixels):
        raise DiffctlError(
            f"{printable(path)}: images {images.dtype} {images.shape} and {len(labels)} labels do not match, "
            f"or are not uint8 with {pixels} values an image"
        )
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DiffctlError(
            f"{printable(path)}: its labels are not {first_label} to {first_label + classes - 1}"
        )
    return images, labels


def _checked_labels(images: FileArray, labels: FileArray) -> FileArray:
    """Return the labels; TypeError unless there is one per image, before any is read."""
    if labels.shape != images.shape[:1]:
        raise TypeError(f"images {images.shape} and labels {labels.shape}")
    return labels


def entry(batch: Any, key: str, path: Path) -> Any:
    """Return a value of a batch with text or bytes as keys; DiffctlError if it is missing."""
    for spelling in (key, key.encode()):
        if isinstance(batch, dict) and spelling in batch:
            return batch[spelling]
    raise DiffctlError(f"{printable(path)} has no {key}: it is not a file of this set")
