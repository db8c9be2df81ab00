"""What a data set's source gives: raw files in, rows of uint8 images and labels out.

A source names its classes and opens its splits; it neither resizes nor stores. `fill` reads the rows in
ranges, in several processes, and writes the store.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion.data.file_arrays import FileArray
from diffusion.data.holdout import Indices
from diffusion.data.problems import Problem
from diffusion.downloads.fetch import OnProgress
from diffusion.images.store import Images, Labels


class Rows(NamedTuple):
    """Consecutive images (n, H, W, C) uint8, and what is known of the bytes that they came from.

    A row in `bad` could not be read: its place holds zeros. `digests` are the SHA-256 (n, 32) of the files
    that were read, empty where a split's raw files are few and named in RawData.sources.
    """

    images: Images
    bad: Mapping[int, str] = {}
    digests: NDArray[np.uint8] | None = None


Job = Callable[[], Rows]
"""Reads some rows. It is small and can be sent to another process."""


class Reader(Protocol):
    """The images of one split by row."""

    heavy: bool  # whether reading is work worth several processes

    def __len__(self) -> int: ...

    def job(self, start: int, stop: int) -> Job:
        """What reads rows `start` to `stop`; a damaged image is reported in `bad`, never raised."""
        ...

    def names(self, rows: Indices) -> list[str]:
        """What a person would call some rows: their files' names."""
        ...


@dataclass(frozen=True)
class Split:
    """One split: its images by row, and a label for each row (None when unlabelled)."""

    reader: Reader
    labels: Labels | None


@dataclass(frozen=True)
class RawData:
    """A data set as its source has it.

    `classes` are names in label order, empty when unlabelled. `shape` is the images' own (H, W, C), None for
    photographs of many sizes, which the readers bring to the configured size. `sources` maps the name of
    every raw file to the SHA-256 of its content; `identity` says in short what would be read, so that an
    interrupted preparation goes on only with the same files. `problems` are files that cannot be used.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int] | None
    train: Split
    test: Split
    sources: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""
    problems: Sequence[Problem] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Both splits by name, the training split first."""
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class DatasetInfo:
    """What preparing a set would take, found without the network and without reading an image.

    `images`, `shape` and the number of `classes` as they will be read (shape None: many); `download`: bytes
    still to come. `blocked` is one sentence when it cannot be prepared here: what to do. `problems` and
    `sources` as in RawData, where they are known so early.
    """

    images: int
    shape: tuple[int, int, int] | None
    classes: int
    download: int = 0
    blocked: str = ""
    problems: Sequence[Problem] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """One data set as its section describes it: raw files in, images and labels out."""

    def info(self) -> DatasetInfo:
        """What is here already and what opening would take."""
        ...

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Find or fetch the raw files; DiffctlError says what is missing and where to put it."""
        ...


class ArrayReader:
    """A reader of images that fit in memory, in the order of `rows` where given."""

    heavy = False

    def __init__(self, images: Images, rows: Indices | None = None) -> None:
        self.images = images
        self.rows = np.arange(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Rows `start` to `stop` of the chosen order."""
        return partial(Rows, self.images[self.rows[start:stop]])

    def names(self, rows: Indices) -> list[str]:
        """The rows' numbers in the raw array."""
        return _numbered(self.rows[rows])


class FileArrayReader:
    """A reader of arrays in files, one after another, in the order of `rows` where given.

    Each holds images of `shape` (H, W, C), whole or flattened; `planar`: stored as (C, H, W).
    """

    heavy = True

    def __init__(
        self,
        parts: Sequence[FileArray],
        shape: tuple[int, int, int],
        *,
        planar: bool,
        rows: Indices | None = None,
    ) -> None:
        self.parts = parts
        self.shape = shape
        self.planar = planar
        self.ends = np.cumsum([part.shape[0] for part in parts])
        self.rows = np.arange(self.ends[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Rows `start` to `stop` of the chosen order, in runs of rows that follow each other in a file."""
        rows = self.rows[start:stop]
        which = np.searchsorted(self.ends, rows, side="right")
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(which) != 0)) + 1
        pieces = []
        for run, files in zip(np.split(rows, cuts), np.split(which, cuts), strict=True):
            part = self.parts[files[0]]
            first = int(run[0] - self.ends[files[0]]) + part.shape[0]
            pieces.append((part, first, first + len(run)))
        return partial(_read_pieces, pieces, self.shape, self.planar)

    def names(self, rows: Indices) -> list[str]:
        """The rows' numbers, counted through all files."""
        return _numbered(self.rows[rows])


def _read_pieces(
    pieces: Sequence[tuple[FileArray, int, int]], shape: tuple[int, int, int], planar: bool
) -> Rows:
    height, width, channels = shape
    stored = (channels, height, width) if planar else shape
    images = [part.read(start, stop).reshape(-1, *stored) for part, start, stop in pieces]
    joined = np.concatenate(images)
    return Rows(joined.transpose(0, 2, 3, 1) if planar else joined)


def _numbered(rows: Indices) -> list[str]:
    return [f"image {row}" for row in rows.tolist()]
