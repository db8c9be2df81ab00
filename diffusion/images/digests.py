"""Digests of image sets and arrays, verification of stores, and .npy files with untrusted headers.

The digest of a set is the SHA-256 of its shape, of the SHA-256 of each image, and of its labels. A note in
the project has size, change times and inodes of a large store's files when they were verified. Other values
do not prove a change (`dvc checkout` and a copy give new ones), so the files are hashed again.
"""

import contextlib
import hashlib
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.layout import VERIFIED_RUNS
from diffusion.system.checksums import Corrupted
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.json_files import JsonObject, read_json
from diffusion.system.section import brief, fingerprint

FILES = ("images.npy", "labels.npy")  # covered by a store's digest
LARGE = 2**26  # bytes: a smaller store is hashed quickly

# What NumPy raises for an invalid header, an impossible size, or a truncated file.
UNREADABLE = (ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)


def content_digest(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
    """Return the SHA-256 in hex over shape, pixels and labels."""
    return combine_digests(images.shape, map(row_digests, blocks(images)), labels)


def blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in blocks, so that a memory map stays on disk."""
    return (images[start : start + 1024] for start in range(0, len(images), 1024))


def row_digests(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the SHA-256 of each image's pixels, (N, 32): equal images have equal rows."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.sha256(row.data).digest() for row in rows)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def combine_digests(
    shape: tuple[int, ...], rows: Iterable[NDArray[np.uint8]], labels: NDArray[np.int64] | None
) -> str:
    """Return the content digest from the row digests in order, which several processes may compute."""
    digest = hashlib.sha256(repr(tuple(int(size) for size in shape)).encode())
    for some in rows:
        digest.update(np.ascontiguousarray(some).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Return the array in a file, memory-mapped if requested; raise Corrupted or FileNotFoundError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"{path.name}: {brief(error, str)}") from None
    if not isinstance(array, np.ndarray):  # an npz archive with this name
        raise Corrupted(f"{path.name} is not an array")
    return array


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 in hex of type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def verify(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, digest: str) -> None:
    """Raise DiffctlError unless images and labels of the store at `path` have this digest."""
    if is_verified(path, images, digest):
        return
    now = _state(path, digest)
    if content_digest(images, labels) != digest:
        raise DiffctlError(f"the images in {path} changed after they were written: make them again")
    if images.nbytes >= LARGE and VERIFIED_RUNS.parent.is_dir():
        with contextlib.suppress(OSError):  # a read-only folder: hashed again the next time
            write_json(_note(path), now)


def is_verified(path: Path, images: NDArray[np.uint8], digest: str) -> bool:
    """Return whether the store is large and its files are unchanged since they were verified."""
    return images.nbytes >= LARGE and read_note(path) == _state(path, digest)


def read_note(path: Path) -> JsonObject | None:
    """Return the state of the store's files when they were verified; None if unknown."""
    try:
        return read_json(_note(path), JsonObject)
    except (OSError, DiffctlError):
        return None


def _note(path: Path) -> Path:
    return VERIFIED_RUNS / f"{fingerprint(str(path.resolve()))}.json"


def _state(path: Path, digest: str) -> dict[str, Any]:
    found = {name: (path / name).stat() for name in FILES if (path / name).exists()}
    files = {
        name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found.items()
    }
    return {"path": str(path.resolve()), "digest": digest, "files": files}
