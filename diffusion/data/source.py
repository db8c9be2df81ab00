"""Interface of data sources: raw files in, rows of uint8 images and labels out; and held-out test images.

A source names its classes and opens its splits. It neither resizes nor stores: `fill_split` reads ranges of
rows in several processes and writes the store.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion.downloads.fetch import OnProgress
from diffusion.images.store import Images, Labels
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import write_text

Indices = NDArray[np.int64]
HEAVY_BYTES = 1 << 28  # of arrays that justify several processes
MAX_NAME_LENGTH = 255  # characters of a class name, as of a folder's
IMAGENET_CLASSES = 1000
SHOWN = 3  # paths of each kind of problem in a sentence


def shuffled(count: int, *seed: int) -> Indices:
    """Return a permutation of `count` indices by the seeds alone, stable across NumPy versions."""
    order: Indices = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    return order


def hold_out(labels: Labels | None, count: int, held_out: int, seed: int) -> tuple[Indices, Indices]:
    """Return shuffled (train, test) indices of `count` images with exactly `held_out` in test.

    With labels, each class gives its share (largest remainder) and keeps at least one training image if
    possible. ValueError unless 0 < held_out < count.
    """
    if not 0 < held_out < count:
        raise ValueError(f"cannot hold out {held_out} of {count} images: at least one must be on each side")
    labels = np.zeros(count, dtype=np.int64) if labels is None else labels
    classes, sizes = np.unique(labels, return_counts=True)
    order, in_test = shuffled(count, seed, 0), np.zeros(count, dtype=bool)
    ordered = labels[order]
    for label, share in zip(classes, _shares(sizes, held_out), strict=True):
        in_test[order[ordered == label][:share]] = True
    order = shuffled(count, seed, 1)  # a second one: in the first, held-out images of a class come early
    return order[~in_test[order]], order[in_test[order]]


def _shares(sizes: Indices, total: int) -> Indices:
    """Return the number to hold out per class: proportional, and not a whole class if that can be avoided."""
    exact = sizes * (total / sizes.sum())
    limit = sizes - 1 if total <= (sizes - 1).sum() else sizes
    shares: Indices = np.minimum(np.floor(exact).astype(np.int64), limit)
    while shares.sum() < total:
        missing = exact - shares
        open_ones = np.flatnonzero(shares < limit)
        largest = open_ones[np.argsort(-missing[open_ones], kind="stable")]
        shares[largest[: total - shares.sum()]] += 1
    return shares


class ImageProblem(NamedTuple):
    """A file or class (relative to the data set's folder) and why it cannot be used."""

    where: str
    why: str


def count_problems(problems: Sequence[ImageProblem]) -> dict[str, int]:
    """Return the number of problems of each kind."""
    return dict(sorted(Counter(problem.why for problem in problems).items()))


def summarize(problems: Sequence[ImageProblem]) -> str:
    """Return counts by kind with the first paths: "2 truncated (a/1.png, b/7.png), 1 empty class (c)"."""
    parts = []
    for why, count in count_problems(problems).items():
        paths = [printable(problem.where) for problem in problems if problem.why == why]
        more = ", …" if count > SHOWN else ""
        parts.append(f"{count:,} {why} ({', '.join(paths[:SHOWN])}{more})")
    return "; ".join(parts)


def write_list(path: Path, problems: Sequence[ImageProblem]) -> None:
    """Write all problems as CSV with the columns file and why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "why"))
    writer.writerows((printable(problem.where), problem.why) for problem in problems)
    write_text(path, text.getvalue())


class Rows(NamedTuple):
    """Consecutive images (n, H, W, C) uint8.

    `bad` maps unreadable rows, which hold zeros, to the reason. `digests` are the SHA-256 (n, 32) of the raw
    files; None where a split has few raw files, named in RawData.sources. `is_final` is False if a further
    try may read a bad row.
    """

    images: Images
    bad: Mapping[int, str] = {}
    digests: NDArray[np.uint8] | None = None
    is_final: bool = True


Job = Callable[[], Rows]
"""Reads some rows. It is small, so that it can be sent to another process."""


class Reader(Protocol):
    """Images of one split by row."""

    heavy: bool  # whether reading is worth several processes

    def __len__(self) -> int: ...

    def job(self, start: int, stop: int) -> Job:
        """Return a job that reads rows `start` to `stop`; damaged images are in `bad`, nothing is raised."""
        ...

    def names(self, rows: Indices) -> list[str]:
        """Return the file names of some rows."""
        ...


class Split(NamedTuple):
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
    problems: Sequence[ImageProblem] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Both splits by name, train first."""
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class DatasetInfo:
    """Estimate of a preparation, made without network access and without reading an image.

    `images`, `shape` and the number of `classes` are those to expect (shape None: many). `download` has the
    bytes still to download. `blocked` is one sentence if the set cannot be prepared here, `is_unreadable`
    whether the reason is in raw files that are here. `problems` and `sources` are as in RawData, where they
    are known this early.
    """

    images: int
    shape: tuple[int, int, int] | None
    classes: int
    download: int = 0
    blocked: str = ""
    problems: Sequence[ImageProblem] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    is_unreadable: bool = False


class Source(Protocol):
    """One data set as its section of params.yaml describes it."""

    def info(self) -> DatasetInfo:
        """Return what is available already and what opening would take."""
        ...

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Find or download the raw files; DiffctlError names what is missing and where to put it."""
        ...


class ArrayReader:
    """A reader of one or several arrays (n, H, W, C), joined, in the order of `rows` if given."""

    def __init__(self, images: Images | Sequence[Images], rows: Indices | None = None) -> None:
        self.parts = [images] if isinstance(images, np.ndarray) else images
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.rows = np.arange(self.ends[-1]) if rows is None else rows
        self.heavy = sum(part.nbytes for part in self.parts) > HEAVY_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Return a job with a copy of rows `start` to `stop`."""
        rows = self.rows[start:stop]
        which = np.searchsorted(self.ends, rows, side="right")
        # A row less the end of its part is counted from that end.
        images = [self.parts[part][row - self.ends[part]] for part, row in zip(which, rows, strict=True)]
        return partial(Rows, np.stack(images))

    def names(self, rows: Indices) -> list[str]:
        """Return the rows' numbers, counted over all arrays."""
        return [f"image {row}" for row in self.rows[rows].tolist()]


def class_names(names: Sequence[str | bytes], origin: Path) -> tuple[str, ...]:
    """Return the names as text; DiffctlError unless each is printable, valid UTF-8 and unique."""
    if not isinstance(names, list | tuple):
        raise DiffctlError(f"{printable(origin)} has no list of classes: it is not a file of this set")
    found = tuple(
        name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in names
    )
    for name in found:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
            what = f"{printable(origin)} has a class named {printable(name)[:40]!r}"
            raise DiffctlError(f"{what}: give it a name of at most {MAX_NAME_LENGTH} printable characters")
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise DiffctlError(f"{printable(origin)} has two classes named {twice[0]}: give each its own name")
    return found


def unique_names(classes: Sequence[tuple[str, str]], origin: Path) -> tuple[str, ...]:
    """Return names of (synset, name) pairs, duplicates with the synset; DiffctlError as `class_names`."""
    seen = Counter(name for _, name in classes)
    return class_names([n if seen[n] == 1 else f"{n} ({synset})" for synset, n in classes], origin)
