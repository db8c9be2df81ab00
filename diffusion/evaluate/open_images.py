"""Any set of images, opened as a store: a store, a folder of image files, or an npz in OpenAI's format."""

import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, cast

import numpy as np

from diffusion.data.file_arrays import NpzArray, integers, npz_keys, open_npz
from diffusion.data.problems import Problem, summarize
from diffusion.data.readers.image_files import read_images
from diffusion.data.readers.listing import list_images
from diffusion.images.decode import BadImage, open_image
from diffusion.images.digests import content_digest
from diffusion.images.store import Images, ImageStore, Labels, open_store
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, printable
from diffusion.system.machine_memory import machine_memory
from diffusion.system.regular_files import open_regular

LOSSY = (".jpg", ".jpeg", ".webp")
IMAGES, LABELS = "arr_0", "arr_1"  # as OpenAI's evaluator calls them
READ_ROWS, READ_BYTES = 256, 1 << 26  # files and pixels of them at a time, at most
MAX_ROWS = 4096  # images of a stream that anything here asks for at a time


def is_store(path: Path) -> bool:
    """Whether a folder is an image store."""
    return os.path.isfile(path / "images.npy")  # False also where it cannot be looked at


def is_prepared(path: Path) -> bool:
    """Whether a folder is a prepared data set: stores train/ and test/."""
    return is_store(path / "train") and is_store(path / "test")


def open_images(path: Path) -> ImageStore:
    """The images at `path` in their order, files by name, as a store.

    An npz holds `arr_0`, uint8 (N, H, W, C), and may hold labels in `arr_1`. Image files become RGB and must
    be square and of one size, since resizing them would move every score. UsageError when there is nothing
    to open, DiffctlError for damaged or unfit images; a DiffctlWarning for lossy files.
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no {printable(path)}") from None
    except OSError as error:
        raise UsageError(
            f"{printable(path)} cannot be opened ({error.strerror}): give access to it"
        ) from None
    if not stat.S_ISDIR(kind):
        images, labels = _read_npz(path)
    elif is_store(path):
        return open_store(path)
    elif is_prepared(path):
        raise UsageError(f"{printable(path)} holds two splits: give {path / 'train'} or {path / 'test'}")
    else:
        images, labels = _read_folder(path), None
    return ImageStore(path, images, labels, {"name": path.name, "digest": content_digest(images, labels)})


class StreamedImages:
    """Images in an npz, of which no more are in memory than are asked for; in ascending order it is unpacked
    once.
    """

    def __init__(self, array: NpzArray) -> None:
        self.array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, len(array.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Images:
        start, stop, _ = rows.indices(len(self))
        return self.array.read(start, max(start, stop))


def streamed_npz(path: Path) -> ImageStore:
    """The images of an npz as a store that reads them as they are used, without their labels.

    DiffctlError as `open_images`.
    """
    array = _image_array(path)
    _need_memory(path, min(MAX_ROWS, array.shape[0]) * math.prod(array.shape[1:]))
    images = cast(Images, StreamedImages(array))
    return ImageStore(path, images, None, {"name": path.name, "digest": content_digest(images, None)})


def _image_array(path: Path) -> NpzArray:
    """The images of an npz, left there."""
    if IMAGES not in npz_keys(path):
        raise DiffctlError(f"{printable(path)} has no arr_0: images in an npz stand under that name")
    images = open_npz(path, IMAGES)
    if images.dtype != np.uint8 or len(images.shape) != 4 or not math.prod(images.shape[1:]):
        found = f"{images.dtype} {images.shape}"
        raise DiffctlError(f"{printable(path)}: arr_0 is {found}, want uint8 (N, H, W, C)")
    return images


def _read_npz(path: Path) -> tuple[Images, Labels | None]:
    images = _image_array(path)
    labels = open_npz(path, LABELS) if LABELS in npz_keys(path) else None
    if labels is not None and labels.shape != images.shape[:1]:
        raise DiffctlError(
            f"{printable(path)}: arr_1 is {labels.shape}, want one label for each of {images.shape[0]} images"
        )
    _need_memory(path, math.prod(images.shape))
    try:
        numbers = None if labels is None else integers(labels)
    except TypeError as error:
        raise DiffctlError(f"{printable(path)}: arr_1 is {error}") from None
    return images.read(0, images.shape[0]), numbers


def _need_memory(path: Path, needed: int) -> None:
    """DiffctlError unless so many bytes are free."""
    if needed > (free := machine_memory()[1]):
        raise DiffctlError(
            f"the images in {printable(path)} take {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} "
            "GB are free: score fewer of them, or a store of them, which is not read into memory"
        )


def _read_folder(path: Path) -> Images:
    listing = list_images(path)
    paths = listing.paths.take(np.arange(len(listing.paths)))
    names = [os.fsdecode(name) for name in paths]
    if not names:
        raise UsageError(
            f"{printable(path)} has no images: give a folder of png or jpeg files, an npz, or a store"
        )
    if lossy := sum(name.lower().endswith(LOSSY) for name in names):
        warnings.warn(
            DiffctlWarning(
                f"{lossy:,} of the images in {printable(path)} are jpeg or webp: their losses move all scores"
            ),
            stacklevel=2,
        )
    if listing.problems:
        _refuse(path, listing.problems)
    size = _common_size(path, names)
    _need_memory(path, len(names) * size * size * 3)
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    some = max(1, min(READ_ROWS, READ_BYTES // (size * size * 3)))
    bad: list[Problem] = []
    for start in range(0, len(paths), some):
        rows = read_images(path, paths[start : start + some], size, 3)
        images[start : start + some] = rows.images
        bad += [Problem(names[start + row], why) for row, why in rows.bad.items()]
    if bad:
        _refuse(path, bad)
    return images


def _refuse(path: Path, bad: Sequence[Problem]) -> NoReturn:
    raise DiffctlError(f"{len(bad):,} of the images in {printable(path)} cannot be used: {summarize(bad)}")


def _common_size(path: Path, names: list[str]) -> int:
    """The side of square images in pixels; DiffctlError names those that are none, or of another size."""
    sizes, bad = [], []
    for name in names:
        try:
            sizes.append(_size(path / name))
        except BadImage as error:
            bad.append(Problem(name, str(error)))
    if bad:
        _refuse(path, bad)
    for name, (width, height) in zip(names, sizes, strict=True):
        if (width, height) != sizes[0] or width != height:
            raise DiffctlError(
                f"{printable(path / name)} is {width}×{height}, and {printable(names[0])} is "
                f"{sizes[0][0]}×{sizes[0][1]}: scores need square images of one size, so make them the way "
                "the reference was made"
            )
    return sizes[0][0]


def _size(path: Path) -> tuple[int, int]:
    """(width, height) as the head of an image file says."""
    try:
        with open_regular(path) as file, open_image(file) as image:
            return image.size
    except OSError as error:
        raise BadImage(f"not readable ({error.strerror})") from None
