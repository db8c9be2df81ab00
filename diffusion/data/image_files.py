"""Folders of image files: finding them, and reading them as rows of a split."""

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.data.decode import SUFFIXES, BadImage, decode
from diffusion.data.problems import Problem
from diffusion.data.source import Job, Rows
from diffusion.errors import DiffctlError

MAX_FILE = 256 << 20  # bytes; no image of the allowed size needs more


Names = NDArray[np.bytes_]
"""Paths as the file system spells them. Millions of str objects would be most of the memory."""


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, by sorted relative path, and what lies among them.

    `folders` has the prefix and the number of images of every folder, in the order of `names`. `content`
    changes with any file's name or size; `identity` also with its time.
    """

    names: Names
    folders: list[tuple[str, int]]
    others: list[str]
    problems: list[Problem]
    content: str
    identity: str


def list_images(root: Path) -> Listing:
    """Find all images below `root`; hidden files are passed over, links to folders are followed once.

    DiffctlError for a folder that cannot be read.
    """
    names: list[Names] = [np.empty(0, dtype="S1")]
    folders: list[tuple[str, int]] = []
    others: list[str] = []
    problems: list[Problem] = []
    content, identity = hashlib.sha256(), hashlib.sha256()
    for prefix, files in _walk(root, "", set()):
        content.update(os.fsencode("".join(f"{prefix}{name}\0{size}\n" for name, size, _ in files)))
        identity.update(np.array([time for _, _, time in files], dtype="<i8").data)
        images, taken = [], set()
        for name, _, _ in files:
            stem, dot, suffix = name.rpartition(".")
            if f"{dot}{suffix}".lower() not in SUFFIXES:
                others.append(prefix + name)
            elif stem.casefold() in taken:
                problems.append(Problem(prefix + name, "with the name of another"))
            else:
                taken.add(stem.casefold())
                images.append(os.fsencode(prefix + name))
        if images:
            names.append(np.array(images))
            folders.append((prefix, len(images)))
    identity.update(content.digest())
    return Listing(
        np.concatenate(names), folders, others, problems, content.hexdigest(), identity.hexdigest()
    )


def _walk(
    root: Path, prefix: str, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Every folder below root in sorted order: its prefix, and the name, size and time of its files."""
    folder = root / prefix
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] != ".")
    except OSError as error:
        raise DiffctlError(f"cannot look into {folder}: {error.strerror}") from None
    yield prefix, [file for name, is_dir in visible if not is_dir for file in _file(folder, name)]
    for name, is_dir in visible:
        if is_dir and name != "__MACOSX":
            yield from _walk(root, f"{prefix}{name}/", seen)


def _file(folder: Path, name: str) -> Iterator[tuple[str, int, int]]:
    """A file's name, size and time; nothing for a device. A broken link is a file that fails later."""
    path = f"{folder}/{name}"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = os.lstat(path)
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        yield name, status.st_size, status.st_mtime_ns


class ImageFileReader:
    """A reader of image files below `root`, decoded to squares of `size` with `channels`."""

    heavy = True

    def __init__(self, root: Path, names: Names, size: int, channels: int) -> None:
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
        """The file's path below the root."""
        return os.fsdecode(self.names[row])


def read_images(root: Path, names: Names, size: int, channels: int) -> Rows:
    """The files' images (n, size, size, channels) and their SHA-256; what cannot be read is in `bad`."""
    images = np.empty((len(names), size, size, channels), dtype=np.uint8)
    digests, bad = [], {}
    folder = os.fsencode(root) + b"/"
    with warnings.catch_warnings(action="ignore"):  # what Pillow warns of is refused, or read all the same
        for index, name in enumerate(names):
            digest = bytes(32)
            try:
                content = _read(folder + name)
                digest = hashlib.sha256(content).digest()
                images[index] = decode(content, size, channels)
            except BadImage as error:
                bad[index] = str(error)
                images[index] = 0
            digests.append(digest)
    return Rows(images, bad, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32))


def _read(path: bytes) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            if size > MAX_FILE:
                raise BadImage(f"larger than {MAX_FILE >> 20} MB")
            content = os.read(file, size)
            while len(content) < size and (more := os.read(file, size - len(content))):
                content += more
            return content
        finally:
            os.close(file)
    except OSError as error:
        raise BadImage(f"not readable ({error.strerror})") from None
