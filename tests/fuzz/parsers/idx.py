"""The gzipped IDX files of Fashion-MNIST."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from diffusion.data.sources.fashion_mnist import read_split
from diffusion.system.errors import DiffctlError
from tests.fuzz.parsers.archives import mutate_gzip
from tests.helpers.raw_data import random_images

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
NAME = IMAGES
MUTATORS = (mutate_gzip,)


@cache
def seeds() -> list[bytes]:
    """Return images and labels, two each."""
    return [_idx(random_images(0, 2, 28, 1)[..., 0]), _idx(np.array([3, 9], np.uint8))]


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.tobytes(), 1, mtime=0)


def parse(path: Path) -> None:
    """Read a split with the input as its images, else as its labels."""
    images, labels = seeds()
    other = path.with_name(LABELS)
    other.write_bytes(labels)
    try:
        _read(path.parent)
    except DiffctlError:
        path.rename(other)
        path.write_bytes(images)
        _read(path.parent)


def _read(folder: Path) -> None:
    split = read_split(folder, "train", {})
    assert len(split.reader) == len(split.labels) > 0
    assert split.reader.job(0, 1)().images.shape == (1, 28, 28, 1)
