"""Folders of image files: finding them, and reading them as rows of a split."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from diffusion.data.decode import SUFFIXES, BadImage, decode
from diffusion.data.problems import Problem
from diffusion.data.source import Job, Rows
from diffusion.errors import DiffctlError

MAX_FILE = 256 << 20  # bytes; no image of the allowed size needs more


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, by sorted relative path, and what lies among them.

    `content` changes with any file's name or size; `identity` also with its time.
    """

    names: list[str]
    others: list[str]
    problems: list[Problem]
    content: str
    identity: str


def list_images(root: Path) -> Listing:
    """Find all images below `root`; hidden files are passed over, links to folders are followed once.

    DiffctlError for a folder that cannot be read.
    """
    names, others, problems = [], [], []
    content, identity = hashlib.sha256(), hashlib.sha256()
    taken: set[str] = set()
    for name, status in _walk(root, "", set()):
        content.update(os.fsencode(f"{name}\0{status.st_size}\n"))
        identity.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES:
            others.append(name)
        elif stem.casefold() in taken:
            problems.append(Problem(name, "with the name of another"))
        else:
            taken.add(stem.casefold())
            names.append(name)
    return Listing(names, others, problems, content.hexdigest(), identity.hexdigest())


def _walk(root: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Relative paths of all files in sorted order, each folder's own files first."""
    folder = root / prefix
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        raise DiffctlError(f"cannot look into {folder}: {error.strerror}") from None
    for entry in visible:
        broken_link = entry.is_symlink() and not os.path.exists(entry)
        if entry.is_file() or broken_link:
            yield prefix + entry.name, entry.stat(follow_symlinks=not broken_link)
    for entry in visible:
        if entry.is_dir() and entry.name != "__MACOSX":
            yield from _walk(root, f"{prefix}{entry.name}/", seen)


class ImageFileReader:
    """A reader of image files, decoded to squares of `size` with `channels`."""

    heavy = True

    def __init__(self, root: Path, names: Sequence[str], size: int, channels: int) -> None:
        self.root = root
        self.names = names
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.names)

    def job(self, start: int, stop: int) -> Job:
        """Decodes files `start` to `stop`."""
        return partial(read_images, self.root, self.names[start:stop], self.size, self.channels)

    def where(self, row: int) -> str:
        """The file's path below the data set's folder."""
        return self.names[row]


def read_images(root: Path, names: Sequence[str], size: int, channels: int) -> Rows:
    """The files' images (n, size, size, channels) and their SHA-256; what cannot be read is in `bad`."""
    images = np.zeros((len(names), size, size, channels), dtype=np.uint8)
    digests = np.zeros((len(names), 32), dtype=np.uint8)
    bad = {}
    for index, name in enumerate(names):
        try:
            content = _read(root / PurePosixPath(name))
            digests[index] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
            images[index] = decode(content, size, channels)
        except BadImage as error:
            bad[index] = str(error)
    return Rows(images, bad, digests)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                raise BadImage(f"larger than {MAX_FILE >> 20} MB")
            return file.readall()
    except OSError as error:
        raise BadImage(f"not readable ({error.strerror})") from None
