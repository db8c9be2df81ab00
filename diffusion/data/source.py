"""Interface of data sources: raw files in, rows of uint8 images and labels out.

A source names its classes and opens its splits. It neither resizes nor stores: `fill_split` reads ranges of
rows in several processes and writes the store.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion.data.file_arrays import FileArray, MemoryArray
from diffusion.data.holdout import Indices
from diffusion.data.problems import Problem
from diffusion.downloads.fetch import OnProgress
from diffusion.images.store import Images, Labels


class Rows(NamedTuple):
    """Consecutive images (n, H, W, C) uint8.

    `bad` maps unreadable rows, which hold zeros, to the reason. `digests` are the SHA-256 (n, 32) of the raw
    files; None where a split has few raw files, named in RawData.sources.
    """

    images: Images
    bad: Mapping[int, str] = {}
    digests: NDArray[np.uint8] | None = None


Job = Callable[[], Rows]
"""Reads some rows. It is small, so that it can be sent to another process."""


class Reader(Protocol):
    """Images of one split by row."""

    heavy: bool  # whether reading is worth several processes

    def __len__(self) -> int: ...

    def job(self, start: int, stop: int) -> Job:
        """Return a job that reads rows `start` to `stop`; it reports damaged images in `bad` and raises
        nothing.
        """
        ...

    def names(self, rows: Indices) -> list[str]:
        """Return the file names of some rows."""
        ...


@dataclass(frozen=True)
class Split:
    """One split: its images by row, and a label for each row (None if unlabelled)."""

    reader: Reader
    labels: Labels | None


@dataclass(frozen=True)
class RawData:
    """A data set before preparation.

    `classes` are names in label order, empty if unlabelled. `shape` is the native (H, W, C), None for
    photographs of many sizes, which readers bring to the configured size. `sources` maps raw file names to
    the SHA-256 of their content. `identity` changes with the files to read, so that an interrupted
    preparation resumes only with the same files. `problems` are files that cannot be used.
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
        """Both splits by name, train first."""
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class DatasetInfo:
    """Estimate of a preparation, made without network access and without reading an image.

    `images`, `shape` and the number of `classes` are those to expect (shape None: many). `download` has the
    bytes still to download. `blocked` is one sentence if the set cannot be prepared here. `problems` and
    `sources` are as in RawData, where they are known this early.
    """

    images: int
    shape: tuple[int, int, int] | None
    classes: int
    download: int = 0
    blocked: str = ""
    problems: Sequence[Problem] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """One data set as its section of params.yaml describes it."""

    def info(self) -> DatasetInfo:
        """Return what is available already and what opening would take."""
        ...

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Find or download the raw files; DiffctlError names what is missing and where to put it."""
        ...


class ArrayReader:
    """A reader of images in memory, in the order of `rows` if given."""

    heavy = False

    def __init__(self, images: Images, rows: Indices | None = None) -> None:
        self.images = images
        self.rows = np.arange(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Return a job for rows `start` to `stop`."""
        return partial(Rows, self.images[self.rows[start:stop]])

    def names(self, rows: Indices) -> list[str]:
        """Return the rows' numbers in the raw array."""
        return _numbered(self.rows[rows])


class FileArrayReader:
    """A reader of concatenated arrays in files, in the order of `rows` if given.

    Each array holds images of `shape` (H, W, C), flattened or not. `planar` means stored as (C, H, W).
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
        """Return a job for rows `start` to `stop`, split into runs of consecutive rows of one file."""
        rows = self.rows[start:stop]
        which = np.searchsorted(self.ends, rows, side="right")
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(which) != 0)) + 1
        pieces = []
        for run, files in zip(np.split(rows, cuts), np.split(which, cuts), strict=True):
            part = self.parts[files[0]]
            first = int(run[0] - self.ends[files[0]]) + part.shape[0]
            pieces.append(_piece(part, first, first + len(run)))
        return partial(_read_pieces, pieces, self.shape, self.planar)

    def names(self, rows: Indices) -> list[str]:
        """Return the rows' numbers, counted over all files."""
        return _numbered(self.rows[rows])


def _piece(part: FileArray, start: int, stop: int) -> tuple[FileArray, int, int]:
    """Return a range of rows; of an array in memory only these rows, since a job is sent to a process."""
    if isinstance(part, MemoryArray):
        return MemoryArray(part.read(start, stop)), 0, stop - start
    return part, start, stop


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
