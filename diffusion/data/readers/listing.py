"""Image files below a folder, listed with a few bytes of memory per file."""

import hashlib
import os
import stat
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.data.holdout import Indices
from diffusion.data.problems import Problem
from diffusion.images.decode import SUFFIXES
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.worker_processes import can_fork, map_in_processes

CHUNK = 4096  # files held as Python objects at a time
MANY = 4 * CHUNK  # files that justify several processes
QUEUED = 4  # chunks a process
MAX_DEPTH = 64  # folders below each other

Names = NDArray[np.bytes_]
Hashes = NDArray[np.int64]


class FilePaths:
    """Relative paths by row: one column of sorted names per folder.

    Millions of bytes objects would take most of a preparation's memory.
    """

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
    with closing(_list_all(root)) as listed:
        for prefix, chunks in groupby(listed, key=lambda chunk: chunk.prefix):
            images: list[Names] = []
            hashes: list[Hashes] = []
            for chunk in chunks:
                content.update(chunk.content)
                identity.update(chunk.times)
                others += chunk.others
                images.append(chunk.images)
                hashes.append(chunk.hashes)
            if any(map(len, images)):
                column, twins = _without_twins(np.concatenate(images), np.concatenate(hashes))
                folders.append((prefix, column))
                problems += [Problem(prefix + name, "with the name of another") for name in twins]
    identity.update(content.digest())
    return Listing(FilePaths(folders), others, problems, content.hexdigest(), identity.hexdigest())


class _Chunk(NamedTuple):
    """Some files of a folder: images and the hashes of their stems, others, names and sizes, times."""

    prefix: str
    images: Names
    hashes: Hashes
    others: list[str]
    content: bytes
    times: bytes


def _list_all(root: Path) -> Generator[_Chunk, None, None]:
    """Yield all files below root in order, some at a time; use all cores if there are many."""
    walked = list(_walk(root, "", set(), MAX_DEPTH))
    jobs = (
        (root, prefix, names[start : start + CHUNK])
        for prefix, names in walked
        for start in range(0, len(names), CHUNK)
    )
    if sum(len(names) for _, names in walked) >= MANY and can_fork():
        return map_in_processes(_list_chunk, jobs, QUEUED)
    return (_list_chunk(*job) for job in jobs)


def _list_chunk(root: Path, prefix: str, names: Names) -> _Chunk:
    files = list(_files(root, prefix, names.tolist()))
    folder = os.fsencode(prefix)
    stems = {name: stem for name, _, _ in files if (stem := _stem(name)) is not None}
    return _Chunk(
        prefix,
        images=_column(list(stems)),
        hashes=np.array([hash(stem) for stem in stems.values()], dtype=np.int64),  # equal in all forks
        others=[os.fsdecode(folder + name) for name, _, _ in files if name not in stems],
        content=b"".join(b"%b%b\0%d\n" % (folder, name, size) for name, size, _ in files),
        times=np.array([time for _, _, time in files], dtype="<i8").tobytes(),
    )


def _walk(root: Path, prefix: str, seen: set[tuple[int, int]], deep: int) -> Iterator[tuple[str, Names]]:
    """Yield every folder below root in sorted order: its prefix, and the sorted names of its files."""
    folder = root / prefix
    if not deep:
        top = printable(prefix.partition("/")[0])
        raise DiffctlError(f"{root / top} has more than {MAX_DEPTH} folders below each other: flatten it")
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        names, folders = _entries(folder)
    except OSError as error:
        raise DiffctlError(f"cannot read the folder {printable(folder)}: {error.strerror}") from None
    yield prefix, names
    for name in folders:
        if name != "__MACOSX":
            yield from _walk(root, f"{prefix}{name}/", seen, deep - 1)


def _entries(folder: Path) -> tuple[Names, list[str]]:
    """Return the visible entries of a folder, sorted: names of files, and of folders."""
    columns: list[Names] = []
    files: list[bytes] = []
    folders: list[str] = []
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                folders.append(os.fsdecode(entry.name))
                continue
            files.append(entry.name)
            if len(files) == CHUNK:
                columns.append(_column(files))
                files = []
    names = np.concatenate([*columns, _column(files)])
    names.sort()
    return names, sorted(folders)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Return whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or through a folder that may not be entered
        return False


def _column(names: list[bytes]) -> Names:
    return np.array(names, dtype=np.bytes_)


def _files(root: Path, prefix: str, names: list[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield names, sizes and times; size and time are 0 unless it is a regular file."""
    folder = os.fsencode(f"{root}/{prefix}")
    for name in names:
        try:
            status = os.stat(folder + name)
        except OSError:
            yield name, 0, 0
            continue
        plain = stat.S_ISREG(status.st_mode)
        yield name, status.st_size if plain else 0, status.st_mtime_ns if plain else 0


def _stem(name: bytes) -> str | None:
    """Return an image's name without suffix, casefolded; None for another file."""
    stem, dot, suffix = os.fsdecode(name).rpartition(".")
    return stem.casefold() if dot and f".{suffix.lower()}" in SUFFIXES else None


def _without_twins(names: Names, hashes: Hashes) -> tuple[Names, list[str]]:
    """Separate names with the stem of an earlier one; `hashes` are of the stems."""
    if len(np.unique(hashes)) == len(names):
        return names, []  # the common case, found with 8 bytes a name
    taken: set[str | None] = set()
    first = np.ones(len(names), dtype=bool)
    for at, name in enumerate(names):
        stem = _stem(name)
        first[at] = stem not in taken
        taken.add(stem)
    return names[first], [os.fsdecode(name) for name in names[~first]]
