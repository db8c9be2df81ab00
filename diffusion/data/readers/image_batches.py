"""The "batch" files of CIFAR and of the downsampled ImageNet: a dict of flattened images and their labels."""

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
    """A batch's images (n, pixels) uint8, left in the file, and labels counted from 0.

    The file is a pickle or an npz. DiffctlError when images and labels do not fit each other or the set.
    """
    try:
        if path.suffix == ".npz":
            images: FileArray = open_npz(path, "data")
            labels = integers(_as_long(images, open_npz(path, label_key)))
        else:
            batch = read_pickle(path)
            images = file_array(entry(batch, "data", path))
            labels = integers(entry(batch, label_key, path))
    except TypeError as error:
        raise DiffctlError(f"{printable(path)} has {error}: it is not a batch of this set") from None
    labels = labels - first_label
    if images.dtype != np.uint8 or images.shape != (len(labels), pixels):
        raise DiffctlError(
            f"{printable(path)}: images {images.dtype} {images.shape} and {len(labels)} labels do not fit, "
            f"or are not uint8 with {pixels} values an image"
        )
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DiffctlError(
            f"{printable(path)}: its labels are not {first_label} to {first_label + classes - 1}"
        )
    return images, labels


def _as_long(images: FileArray, labels: FileArray) -> FileArray:
    """The labels; TypeError unless there is one an image, before any of them is read."""
    if labels.shape != images.shape[:1]:
        raise TypeError(f"images {images.shape} and labels {labels.shape}")
    return labels


def entry(batch: Any, key: str, path: Path) -> Any:
    """A value of a batch, its keys being str or bytes; DiffctlError when it is not there."""
    for spelt in (key, key.encode()):
        if isinstance(batch, dict) and spelt in batch:
            return batch[spelt]
    raise DiffctlError(f"{printable(path)} has no {key}: it is not a file of this set")
