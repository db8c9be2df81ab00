"""One store for every set of images: prepared data, a sampled cell, what is served.

A folder with `images.npy` (uint8, NHWC), `labels.npy` (int64, absent without labels) and `meta.json`.
Images are read through a memory map, so a store of any size opens at once.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import atomic_folder, write_json

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ImageStore:
    """An open store: `images` (N, H, W, C) uint8 memory-mapped, `labels` (N,) int64 or None, `meta`."""

    path: Path
    images: Images
    labels: Labels | None
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 in hex over shape, pixels and labels: one changed pixel changes it."""
        return str(self.meta["digest"])


def open_store(path: Path) -> ImageStore:
    """Open a store for reading; UsageError names what is missing, DiffctlError what does not fit together."""
    path = Path(path)
    try:
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        labels_path = path / "labels.npy"
        labels = np.load(labels_path, allow_pickle=False) if labels_path.exists() else None
    except FileNotFoundError as error:
        raise UsageError(f"no images in {path}: {Path(error.filename).name} is missing") from None
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise DiffctlError(f"the images in {path} are damaged ({error}): make them again") from None
    if images.dtype != np.uint8 or images.ndim != 4 or (labels is not None and len(labels) != len(images)):
        raise DiffctlError(f"the images in {path} do not fit: {images.dtype} {images.shape}, want uint8 NHWC")
    return ImageStore(path, images, labels, meta)


def write_store(path: Path, images: Images, labels: Labels | None, meta: dict[str, Any]) -> ImageStore:
    """Write an array as a store, whole or not at all; `count` and `digest` join the meta."""
    return stream_store(path, images.shape, _blocks(images), labels, meta)


def stream_store(
    path: Path, shape: tuple[int, ...], parts: Iterable[Images], labels: Labels | None, meta: dict[str, Any]
) -> ImageStore:
    """Write images that come in parts, in order, of which only one need be in memory; as `write_store`."""
    with atomic_folder(path) as folder:
        with open(folder / "images.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            write_array_header_1_0(file, header)
            rows = _written(file, parts)
            digest = combine_digests(shape, rows, labels)
        describe_store(folder, labels, meta, shape[0], digest)
    return open_store(path)


def _written(file: IO[bytes], parts: Iterable[Images]) -> Iterator[NDArray[np.uint8]]:
    """Write each part and give its rows' digests."""
    for part in parts:
        file.write(np.ascontiguousarray(part).data)
        yield row_digests(part)


def _blocks(images: Images) -> Iterator[Images]:
    """The images, some at a time, so that a memory map stays on disk."""
    return (images[start : start + 1024] for start in range(0, len(images), 1024))


def describe_store(
    folder: Path, labels: Labels | None, meta: dict[str, Any], count: int, digest: str
) -> None:
    """Write all of a store but its images."""
    if labels is not None:
        np.save(folder / "labels.npy", labels.astype(np.int64), allow_pickle=False)
    write_json(folder / "meta.json", {**meta, "count": count, "digest": digest})


def content_digest(images: Images, labels: Labels | None) -> str:
    """SHA-256 in hex over shape, pixels and labels."""
    return combine_digests(images.shape, map(row_digests, _blocks(images)), labels)


def row_digests(images: Images) -> NDArray[np.uint8]:
    """The SHA-256 of every image's pixels, (N, 32): equal images have equal rows."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.sha256(row.data).digest() for row in rows)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def combine_digests(shape: tuple[int, ...], rows: Iterable[NDArray[np.uint8]], labels: Labels | None) -> str:
    """The content digest from the rows' digests in order, so that several processes can compute those."""
    digest = hashlib.sha256(repr(tuple(int(size) for size in shape)).encode())
    for some in rows:
        digest.update(np.ascontiguousarray(some).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()
