"""Image files below a folder, with a few bytes of memory per file, and CSV files with their classes."""

import csv
import hashlib
import io
import os
import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.data.holdout import Indices
from diffusion.data.problems import Problem
from diffusion.images.decode import SUFFIXES
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.regular_files import open_regular

MAX_DEPTH = 64  # folders below each other
SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
MAX_LINE = 1 << 16  # characters; a path and a class take a few hundred
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")

Names = NDArray[np.bytes_]


class FilePaths:
    """Relative paths by row, in little memory: one column of sorted names per folder."""

    def __init__(self, folders: Sequence[tuple[str, Names]]) -> None:
        """`folders` has prefixes ("" or "a/b/") and the names of the files there."""
        self.folders = [(prefix, len(names)) for prefix, names in folders]
        self._columns = [(os.fsencode(prefix), names) for prefix, names in folders]
        self._numbers = {prefix: number for number, (prefix, _) in enumerate(folders)}
        self._starts = np.cumsum([0, *(len(names) for _, names in folders)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, rows: Indices) -> list[bytes]:
        """Return the paths of some rows."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(which.tolist(), (rows - self._starts[which]).tolist(), strict=True)
        return [self._columns[number][0] + self._columns[number][1].item(at) for number, at in places]

    def names(self, rows: Indices) -> list[str]:
        """Return the paths of some rows as text."""
        return [os.fsdecode(path) for path in self.take(rows)]

    def find(self, path: str) -> int:
        """Return the row of a path, or -1."""
        prefix, slash, name = path.rpartition("/")
        number = self._numbers.get(prefix + slash, -1)
        if number < 0:
            return -1
        wanted, names = os.fsencode(name), self._columns[number][1]
        at = bisect_left(names, wanted)
        return int(self._starts[number]) + at if at < len(names) and names[at] == wanted else -1


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, other files among them, and files that cannot be used.

    `content` changes with the name or size of any file; `identity` also with its time.
    """

    paths: FilePaths
    others: list[str]
    problems: list[Problem]
    content: str
    identity: str


def list_images(root: Path) -> Listing:
    """List all images below `root`, without hidden files; follow each linked folder once.

    Anything but a regular file, and a broken link, is listed and fails when it is read. DiffctlError for a
    folder that is unreadable or too deep.
    """
    folders: list[tuple[str, Names]] = []
    others: list[str] = []
    problems: list[Problem] = []
    content, identity = hashlib.sha256(), hashlib.sha256()
    for prefix, names in _walk(root, "", set(), MAX_DEPTH):
        folder, images, stems = os.fsencode(prefix), [], set()
        for name in names:
            size, time = _size_and_time(os.fsencode(root / prefix) + b"/" + name)
            content.update(b"%b%b\0%d\n" % (folder, name, size))
            identity.update(time.to_bytes(8, "little", signed=True))
            stem = _stem(name)
            if stem is None:
                others.append(os.fsdecode(folder + name))
            elif stem in stems:
                problems.append(Problem(os.fsdecode(folder + name), "with the name of another"))
            else:
                stems.add(stem)
                images.append(name)
        if images:
            folders.append((prefix, np.array(images)))
    identity.update(content.digest())
    return Listing(FilePaths(folders), others, problems, content.hexdigest(), identity.hexdigest())


def _walk(
    root: Path, prefix: str, seen: set[tuple[int, int]], deep: int
) -> Iterator[tuple[str, list[bytes]]]:
    """Yield every folder below root in order: its prefix, and the sorted names of its visible files."""
    folder = root / prefix
    if not deep:
        top = printable(prefix.partition("/")[0])
        raise DiffctlError(f"{root / top} has more than {MAX_DEPTH} folders below each other: flatten it")
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(os.fsencode(folder)) as entries:
            is_folder = {entry.name: _is_folder(entry) for entry in entries if entry.name[:1] != b"."}
    except OSError as error:
        raise DiffctlError(f"cannot read the folder {printable(folder)}: {error.strerror}") from None
    yield prefix, sorted(name for name, below in is_folder.items() if not below)
    for name in sorted(os.fsdecode(name) for name, below in is_folder.items() if below):
        if name != "__MACOSX":
            yield from _walk(root, f"{prefix}{name}/", seen, deep - 1)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Return whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or through a folder that may not be entered
        return False


def _size_and_time(path: bytes) -> tuple[int, int]:
    """Return size and time of a regular file, else 0 and 0."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)


def _stem(name: bytes) -> str | None:
    """Return an image's name without suffix, casefolded; None for another file."""
    stem, dot, suffix = os.fsdecode(name).rpartition(".")
    return stem.casefold() if dot and f".{suffix.lower()}" in SUFFIXES else None


class Row(NamedTuple):
    """One line: an empty label means none; `split` is None, train or test."""

    file: str
    label: str
    split: str | None


def read_labels(path: Path) -> Iterator[Row]:
    """Yield the rows; UsageError if the file is missing, not CSV in UTF-8, or lacks a column."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(_lines(file))
            columns = list(reader.fieldnames or [])
            name_column = _column(path, columns, FILE_COLUMNS)
            label_column = _column(path, columns, LABEL_COLUMNS)
            for values in reader:
                name = (values[name_column] or "").strip().replace("\\", "/").removeprefix("./")
                yield Row(name, (values[label_column] or "").strip(), _split(path, values.get("split")))
    except FileNotFoundError:
        raise UsageError(f"data.labels: {path} does not exist; it must be in data.path") from None
    except OSError as error:
        raise UsageError(
            f"data.labels: {path} cannot be read ({error.strerror}): give access to it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"data.labels: {path} is not readable as CSV in UTF-8 ({error})") from None


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines; csv.Error for one that is too long, before the rest of it is read."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    for column in columns:
        if column.strip().lower() in names:
            return column
    raise UsageError(f"data.labels: {path} needs a first line with a column {' or '.join(names)}")


def _split(path: Path, name: str | None) -> str | None:
    if not name or not name.strip():
        return None
    if name.strip() not in SPLITS:
        raise UsageError(
            f"data.labels: {path}: split {printable(name)[:80]!r} is not one of {', '.join(SPLITS)}"
        )
    return SPLITS[name.strip()]
