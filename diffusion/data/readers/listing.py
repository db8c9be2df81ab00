"""Image files below a folder, with a few bytes of memory per file, and CSV files with their classes."""

import csv
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.data.source import ImageProblem
from diffusion.images.pictures import SUFFIXES
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import read_regular_text

SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
MAX_LIST = 1 << 28  # bytes of a list of classes; a million images take less than half of it
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")
SPLIT_COLUMNS = ("split",)
OTHER_PICTURES = tuple(b".heic .heif .avif .tif .tiff .bmp .jfif .jpe .jp2 .jxl .dng .cr2 .nef .arw".split())

Paths = NDArray[np.bytes_]
"""Relative paths of files."""


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, other files among them, and pictures that cannot be used.

    `paths` (N,) are ordered by folder; `folders` has the prefix ("" or "a/b/") of each folder and its number
    of images. `content` changes with the name or size of any file; `identity` also with its time.
    """

    paths: Paths
    folders: list[tuple[str, int]]
    others: list[str]
    problems: list[ImageProblem]
    content: str
    identity: str


def as_text(paths: Paths) -> list[str]:
    """Return paths as text."""
    return [os.fsdecode(path) for path in paths.tolist()]


def list_images(root: Path) -> Listing:
    """List all images below `root`, without hidden files; follow each linked folder once.

    Pipes and broken links are listed and fail when they are read. DiffctlError for an unreadable folder.
    """
    columns: list[Paths] = [np.empty(0, np.bytes_)]
    folders: list[tuple[str, int]] = []
    others: list[str] = []
    problems: list[ImageProblem] = []
    content, identity = hashlib.sha256(), hashlib.sha256()
    for prefix, names in _walk(root):
        folder, images, stems = os.fsencode(prefix), [], set()
        for name in names:
            size, time = _size_and_time(os.fsencode(root / prefix) + b"/" + name)
            content.update(b"%b%b\0%d\n" % (folder, name, size))
            identity.update(time.to_bytes(8, "little", signed=True))
            stem, path = _stem(name), folder + name
            if stem is None and name.lower().endswith(OTHER_PICTURES):
                problems.append(ImageProblem(os.fsdecode(path), "not png, jpeg, webp or gif"))
            elif stem is None:
                others.append(os.fsdecode(path))
            elif stem in stems:
                problems.append(ImageProblem(os.fsdecode(path), "with the name of another"))
            else:
                stems.add(stem)
                images.append(path)
        if images:
            columns.append(np.array(images))
            folders.append((prefix, len(images)))
    identity.update(content.digest())
    paths = np.concatenate(columns)
    return Listing(paths, folders, others, problems, content.hexdigest(), identity.hexdigest())


def _walk(root: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Yield every folder below root in order: its prefix, and the sorted names of its visible files."""
    top = os.fsencode(root)
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(top, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        visible = (name for name in below if name[:1] != b"." and name != b"__MACOSX")
        below[:] = sorted(visible, key=os.fsdecode)
        prefix = os.fsdecode(folder.removeprefix(top).lstrip(b"/"))
        yield prefix and f"{prefix}/", sorted(name for name in names if name[:1] != b".")


def _refuse_folder(error: OSError) -> None:
    folder = printable(os.fsdecode(error.filename))
    raise DiffctlError(f"cannot read the folder {folder}: {error.strerror}") from None


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


def read_labels(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield file, label ("" if none) and split (None, train or test) of each row; DiffctlError if not CSV."""
    reader = csv.DictReader(io.StringIO(read_regular_text(path, MAX_LIST), newline=""))
    try:
        columns = list(reader.fieldnames or [])
        name_column = _required_column(path, columns, FILE_COLUMNS)
        label_column = _required_column(path, columns, LABEL_COLUMNS)
        split_column = _column(columns, SPLIT_COLUMNS)
        for values in reader:
            name = (values[name_column] or "").strip().replace("\\", "/").removeprefix("./")
            split = None if split_column is None else _split(path, values[split_column])
            yield name, (values[label_column] or "").strip(), split
    except csv.Error as error:
        raise UsageError(f"data.labels: {path} is not readable as CSV ({error})") from None


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((column for column in columns if column.strip().lower() in names), None)


def _required_column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    if (found := _column(columns, names)) is None:
        raise UsageError(f"data.labels: {path} needs a first line with a column {' or '.join(names)}")
    return found


def split_of(name: str) -> str | None:
    """Return the split, train or test, that a folder or a CSV names; None if it names none."""
    return SPLITS.get(name.casefold())


def _split(path: Path, name: str | None) -> str | None:
    name = (name or "").strip()
    if name and not split_of(name):
        found = printable(name)[:80]
        raise UsageError(f"data.labels: {path}: split {found!r} is not one of {', '.join(SPLITS)}")
    return split_of(name)
