"""The one store for every set of images: prepared data, sampled cells, images to score.

A store is a folder with `images.npy` (uint8, NHWC), `labels.npy` (int64, absent without labels) and
`meta.json` (checksummed, with the digest of images and labels). Images are memory-mapped, so that a store of
any size opens at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from pydantic import ValidationError

from diffusion.images.digests import blocks, combine_digests, read_array, row_digests, verify
from diffusion.images.store_meta import StoreMeta
from diffusion.system.checksums import Corrupted, add_checksum, strip_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import atomic_folder, write_json
from diffusion.system.json_files import JsonObject, read_json
from diffusion.system.renamed import translate
from diffusion.system.section import explain

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
        meta = _read_meta(path, kind)
        labels = read_array(path / "labels.npy") if (path / "labels.npy").exists() else None
    except FileNotFoundError as error:
        raise UsageError(f"no images in {path}: {Path(error.filename).name} is missing") from None
    except NotADirectoryError:
        raise UsageError(f"{path} is a file: give the folder of an image store") from None
    except (Corrupted, OSError) as error:
        raise DiffctlError(f"the images in {path} are damaged ({error}): make them again") from None
    store = ImageStore(path, images, labels, meta)
    _refuse_unfit(store)
    if not unverified:
        verify(path, images, labels, store.digest)
    return store


def _refuse_unfit(store: ImageStore) -> None:
    """Raise DiffctlError unless images, labels and meta are consistent."""
    path, images, labels, meta = store.path, store.images, store.labels, store.meta
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DiffctlError(
            f"the images in {path} are invalid: {images.dtype} {images.shape}, want uint8 NHWC"
        )
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        raise DiffctlError(
            f"the labels in {path} are invalid: {labels.dtype} {labels.shape}, want int64 ({len(images)},)"
        )
    described = (meta["count"], *(meta.get(field, size) for field, size in _sizes(images).items()))
    if described != (len(images), *_sizes(images).values()):
        raise DiffctlError(f"the images in {path} are {images.shape}, unlike in their meta.json")
    classes = len(meta.get("classes") or ())
    if classes and labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DiffctlError(
            f"the labels in {path} are from {labels.min()} to {labels.max()}, of {classes} classes"
        )


def _sizes(images: Images) -> dict[str, int]:
    """Return the size fields of a prepared split's meta for these images."""
    return {"image_size": images.shape[1], "channels": images.shape[3]}


def _read_meta(path: Path, kind: type[StoreMeta]) -> dict[str, Any]:
    """Return the validated meta, whose checksum proves that diffctl wrote it."""
    try:
        values = translate("store", strip_checksum(read_json(path / "meta.json", JsonObject)))
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


def write_store(path: Path, images: Images, labels: Labels | None, meta: dict[str, Any]) -> ImageStore:
    """Write an array as a store, atomically; `count` and `digest` are added to the meta."""
    return stream_store(path, images.shape, blocks(images), labels, meta)


def stream_store(
    path: Path, shape: tuple[int, ...], parts: Iterable[Images], labels: Labels | None, meta: dict[str, Any]
) -> ImageStore:
    """Write images that arrive in parts, in order, one part in memory at a time; as `write_store`."""
    with atomic_folder(path) as folder:
        with open(folder / "images.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            write_array_header_1_0(file, header)
            rows = _written(file, parts)
            digest = combine_digests(shape, rows, labels)
        describe_store(folder, labels, meta, shape[0], digest)
    return open_store(path, unverified=True)


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
