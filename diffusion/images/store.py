"""The one store for every set of images: prepared data, sampled cells, images to score.

A store is a folder with `images.npy` (uint8, NHWC), `labels.npy` (int64, absent without labels) and
`meta.json` (checksummed, with the digest of images and labels). Images are memory-mapped, so that a store of
any size opens at once.

The digest is the SHA-256 of the images' shape, of the SHA-256 of each image, and of the labels. A note in the
project has size, change times and inodes of a large store's files when they were verified. Other values do
not prove a change (`dvc checkout` and a copy give new ones), so the files are hashed again.
"""

import contextlib
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import IO, Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from pydantic import ValidationError

from diffusion.images.image_size import written_size
from diffusion.images.store_meta import PreparedMeta, StoreMeta
from diffusion.layout import PREPARED, VERIFIED_RUNS
from diffusion.system.checksums import Corrupted, JsonObject, add_checksum, read_json, strip_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import atomic_folder, write_json
from diffusion.system.section import brief, explain, fingerprint

FILES = ("images.npy", "labels.npy")  # covered by a store's digest
LARGE = 2**26  # bytes: a smaller store is hashed quickly

# What NumPy raises for an invalid header, an impossible size, or a truncated file.
UNREADABLE = (ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SAMPLED = 4096  # images of a set's sample
DIGITS = 8  # hex digits of an image's digest in it
TAG_LENGTH = 256 * DIGITS  # characters of its beginning that a tag of MLflow stores


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
        """SHA-256 in hex over shape, pixels and labels."""
        return str(self.meta["digest"])


def open_store(path: Path, kind: type[StoreMeta] = StoreMeta, *, unverified: bool = False) -> ImageStore:
    """Open a store for reading, with meta of that kind, and verify its images by their digest.

    `unverified` skips the images, for readers of the meta. UsageError names what is missing, DiffctlError
    what was edited or is inconsistent.
    """
    path = Path(path)
    try:
        images = read_array(path / "images.npy", mapped=True)
        meta = read_meta(path, kind)
        labels = read_array(path / "labels.npy") if (path / "labels.npy").exists() else None
    except FileNotFoundError as error:
        advice = "; `diffctl stage data` prepares the images" if path.parent == PREPARED else ""
        raise UsageError(f"no images in {path}: {Path(error.filename).name} is missing{advice}") from None
    except NotADirectoryError:
        raise UsageError(f"{path} is a file: give the folder of an image store") from None
    except (Corrupted, OSError) as error:
        raise DiffctlError(f"the images in {path} are damaged ({error}): make them again") from None
    store = ImageStore(path, images, labels, meta)
    if problem := _find_problem(store):
        raise DiffctlError(f"the images in {path} are invalid ({problem}): make them again")
    if not unverified:
        verify(store)
    return store


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Return the array in a file, memory-mapped if requested; raise Corrupted or FileNotFoundError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"{path.name}: {brief(error, str)}") from None
    if not isinstance(array, np.ndarray):  # an npz archive with this name
        raise Corrupted(f"{path.name} is not an array")
    return array


def read_meta(path: Path, kind: type[StoreMeta]) -> dict[str, Any]:
    """Return the validated meta, with a checksum by diffctl; DiffctlError if it is invalid."""
    try:
        values: JsonObject = strip_checksum(read_json(path / "meta.json", JsonObject))
    except Corrupted as error:
        raise DiffctlError(
            f"{path / 'meta.json'} was not written by diffctl or is edited ({error}): make the images again"
        ) from None
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise DiffctlError(
            f"{explain(error, f'the images in {path} have an incomplete meta.json', kind)}: make them again"
        ) from None
    return values


def prepared_meta() -> dict[str, Any] | None:
    """Return the meta of the prepared training split; None if it is missing or damaged."""
    try:
        return read_meta(PREPARED / "train", PreparedMeta)
    except (OSError, Corrupted, DiffctlError):
        return None


def _find_problem(store: ImageStore) -> str | None:
    """Return what is inconsistent in images, labels and meta; None if nothing is."""
    images, labels, meta = store.images, store.labels, store.meta
    if images.dtype != np.uint8 or images.ndim != 4:
        return f"{images.dtype} {images.shape}, want uint8 NHWC"
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        return f"the labels are {labels.dtype} {labels.shape}, want int64 ({len(images)},)"
    side = written_size(images.shape[1:3])
    image_size = side if isinstance(side, int) else [*side]  # as in JSON
    sizes = {"count": len(images), "image_size": image_size, "channels": images.shape[3]}
    if any(meta.get(field, size) != size for field, size in sizes.items()):
        return f"{images.shape}, unlike in meta.json"
    classes = len(meta.get("classes") or ())
    if classes and labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        return f"labels from {labels.min()} to {labels.max()}, of {classes} classes"
    return None


def verify(store: ImageStore) -> None:
    """Raise DiffctlError unless images and labels have the store's digest."""
    if is_verified(store):
        return
    now = _state(store)
    if content_digest(store.images, store.labels) != store.digest:
        raise DiffctlError(f"the images in {store.path} changed after they were written: make them again")
    if store.images.nbytes >= LARGE and VERIFIED_RUNS.parent.is_dir():
        with contextlib.suppress(OSError):  # a read-only folder: hashed again the next time
            write_json(_note(store.path), now)


def is_verified(store: ImageStore) -> bool:
    """Return whether the store is large and its files are unchanged since they were verified."""
    return store.images.nbytes >= LARGE and read_note(store.path) == _state(store)


def read_note(path: Path) -> JsonObject | None:
    """Return the state of the store's files when they were verified; None if unknown."""
    try:
        return read_json(_note(path), JsonObject)
    except (OSError, DiffctlError):
        return None


def _note(path: Path) -> Path:
    return VERIFIED_RUNS / f"{fingerprint(str(path.resolve()))}.json"


def _state(store: ImageStore) -> dict[str, Any]:
    found = {name: (store.path / name).stat() for name in FILES if (store.path / name).exists()}
    files = {
        name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found.items()
    }
    return {"path": str(store.path.resolve()), "digest": store.digest, "files": files}


def write_store(path: Path, images: Images, labels: Labels | None, meta: dict[str, Any]) -> ImageStore:
    """Write an array as a store, atomically; `count` and `digest` are added to the meta."""
    return stream_store(path, images.shape, blocks(images), labels, meta)


def stream_store(
    path: Path, shape: tuple[int, ...], parts: Iterable[Images], labels: Labels | None, meta: dict[str, Any]
) -> ImageStore:
    """Write images that arrive in parts, in order, one part in memory at a time; as `write_store`."""
    with atomic_folder(path) as folder:
        with open(folder / "images.npy", "wb") as file:
            file.write(npy_header(shape))
            digest = combine_digests(shape, _written(file, parts), labels)
        describe_store(folder, labels, meta, shape[0], digest)
    return open_store(path, unverified=True)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the bytes before the values of a uint8 .npy file."""
    file = io.BytesIO()
    write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))})
    return file.getvalue()


def _written(file: IO[bytes], parts: Iterable[Images]) -> Iterator[NDArray[np.uint8]]:
    """Write each part and yield its row digests."""
    for part in parts:
        file.write(np.ascontiguousarray(part).data)
        yield row_digests(part)


def describe_store(
    folder: Path, labels: Labels | None, meta: dict[str, Any], count: int, digest: str
) -> None:
    """Write all of a store except its images."""
    if labels is not None:
        np.save(folder / "labels.npy", labels.astype(np.int64), allow_pickle=False)
    write_json(folder / "meta.json", add_checksum({**meta, "count": count, "digest": digest}))


def save_npz(file: IO[bytes], images: Images, labels: Sequence[int] | None) -> None:
    """Write images as `arr_0` and labels as int64 `arr_1`, the format of OpenAI's evaluator."""
    arrays = [images] if labels is None else [images, np.asarray(labels, dtype=np.int64)]
    np.savez(file, *arrays)


def blocks(images: Images) -> Iterator[Images]:
    """Yield the images in blocks, so that a memory map stays on disk."""
    return (images[start : start + 1024] for start in range(0, len(images), 1024))


def content_digest(images: Images, labels: Labels | None) -> str:
    """Return the SHA-256 in hex over shape, pixels and labels."""
    return combine_digests(images.shape, map(row_digests, blocks(images)), labels)


def row_digests(images: Images) -> NDArray[np.uint8]:
    """Return the SHA-256 of each image's pixels, (N, 32): equal images have equal rows."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.sha256(row.data).digest() for row in rows)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def combine_digests(shape: tuple[int, ...], rows: Iterable[NDArray[np.uint8]], labels: Labels | None) -> str:
    """Return the content digest from the row digests in order, which several processes may compute."""
    digest = hashlib.sha256(repr(tuple(int(size) for size in shape)).encode())
    for some in rows:
        digest.update(np.ascontiguousarray(some).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 in hex of type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def image_sample(digests: Iterable[NDArray[np.uint8]]) -> str:
    """Return a sample of a set, in hex, from arrays (n, ≥ 4) of the digests of its images.

    It has the smallest digests, so that the samples of two sets have the images that both sets contain.
    """
    heads = np.concatenate([np.ascontiguousarray(some[:, : DIGITS // 2]) for some in digests])
    return bytes(np.unique(heads.view(">u4"))[:SAMPLED].astype(">u4")).hex()


def contained_share(sample: str, larger: str) -> float | None:
    """Estimate which share of a set's images is in another one.

    `sample` is the beginning of the set's sample, `larger` the other's whole sample. None if samples do not
    show it, of a few images and a very large set.
    """
    first, second = wrap(sample, DIGITS), wrap(larger, DIGITS)
    end = second[-1] if len(second) == SAMPLED else "g"  # above it the second sample has no images
    tested = [digest for digest in first if digest <= end]
    return sum(digest in second for digest in tested) / len(tested) if tested else None
