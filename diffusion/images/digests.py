"""Digest of an image set: SHA-256 of its shape, of the SHA-256 of each image, and of its labels."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


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
