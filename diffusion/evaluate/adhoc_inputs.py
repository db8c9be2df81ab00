"""Stores, folders and npz files for ad-hoc scoring, opened and checked before torch is imported."""

import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.problems import Problem, summarize
from diffusion.data.readers.arrays import integers, npz_keys, open_npz
from diffusion.data.readers.image_files import read_images
from diffusion.data.readers.listing import list_images
from diffusion.evaluate.evaluate_config import OTHER_SPLIT
from diffusion.evaluate.statistics_file import has_array
from diffusion.images.decode import BadImage, open_image
from diffusion.images.digests import content_digest
from diffusion.images.store import Images, ImageStore, Labels, open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, printable
from diffusion.system.memory import format_bytes, machine_memory
from diffusion.system.regular_files import open_regular

MIN_IMAGES = 2  # a covariance needs two images
LOSSY = (".jpg", ".jpeg", ".webp")
IMAGES, LABELS = "arr_0", "arr_1"  # names in OpenAI's format
MAX_FILES, MAX_PIXELS = 256, 1 << 26  # decoded at a time


class ScoringInputs(NamedTuple):
    """Images of one size: the sample, the real images, and held-out real images for the floor.

    `against` and `split` describe the source of the real images. `heldout` is None unless it is a prepared
    data set.
    """

    sample: ImageStore
    real: ImageStore
    heldout: ImageStore | None
    against: Path
    split: str


def open_inputs(path: Path, against: Path, split: str = "train") -> ScoringInputs:
    """Open the sample and the real images, perhaps of prepared data; errors as `open_images`."""
    sample = open_sample(path)
    heldout = None
    if is_prepared(against):
        real, heldout = (open_store(against / one, PreparedMeta) for one in (split, OTHER_SPLIT[split]))
        _check_count(heldout)
    else:
        real = open_images(against)
    _check_count(real)
    _check_size(sample, real, against)
    return ScoringInputs(sample, real, heldout, against, split)


def open_sample(path: Path) -> ImageStore:
    """Open the images to be scored; errors as `open_images`, and for fewer than two images."""
    sample = open_images(path)
    _check_count(sample)
    return sample


def images_in_statistics(statistics: Path, sample: ImageStore) -> ImageStore | None:
    """Return the real images in a file of statistics, read on demand, or None; errors as `open_images`."""
    if not has_array(statistics, IMAGES):
        return None
    real = mapped_npz(statistics)
    _check_count(real)
    _check_size(sample, real, statistics)
    return real


def is_prepared(path: Path) -> bool:
    """Return whether a folder is a prepared data set, with stores train/ and test/."""
    return _is_store(path / "train") and _is_store(path / "test")


def _is_store(path: Path) -> bool:
    return os.path.isfile(path / "images.npy")  # False also if it is not accessible


def open_images(path: Path) -> ImageStore:
    """Open images as a store, in the order of their file names.

    An npz file holds `arr_0`, uint8 (N, H, W, C), and optionally labels in `arr_1`. Image files are converted
    to RGB. They must be square and of one size, since resizing would change every score. Lossy files cause a
    DiffctlWarning. UsageError if there is nothing to open, DiffctlError for damaged or unfit images.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no {printable(path)}") from None
    except OSError as error:
        raise UsageError(
            f"{printable(path)} cannot be opened ({error.strerror}): give access to it"
        ) from None
    if not stat.S_ISDIR(mode):
        images, labels = _read_npz(path)
    elif _is_store(path):
        return open_store(path)
    elif is_prepared(path):
        raise UsageError(f"{printable(path)} holds two splits: give {path / 'train'} or {path / 'test'}")
    else:
        images, labels = _read_folder(path), None
    return ImageStore(path, images, labels, {"name": path.name, "digest": content_digest(images, labels)})


def mapped_npz(path: Path) -> ImageStore:
    """Open the images of an npz file without their labels, read on demand; errors as `open_images`."""
    images = _image_array(path)
    return ImageStore(path, images, None, {"name": path.name, "digest": content_digest(images, None)})


def _image_array(path: Path) -> Images:
    """Return the images of an npz file, mapped."""
    if IMAGES not in npz_keys(path):
        raise DiffctlError(f"{printable(path)} has no {IMAGES}: store the images under that name")
    images = open_npz(path, IMAGES)
    if images.dtype != np.uint8 or len(images.shape) != 4 or not math.prod(images.shape[1:]):
        found = f"{images.dtype} {images.shape}"
        raise DiffctlError(f"{printable(path)}: {IMAGES} is {found}, want uint8 (N, H, W, C)")
    return images


def _read_npz(path: Path) -> tuple[Images, Labels | None]:
    images = _image_array(path)
    count = images.shape[0]
    labels = open_npz(path, LABELS) if LABELS in npz_keys(path) else None
    if labels is not None and labels.shape != (count,):
        raise DiffctlError(
            f"{printable(path)}: {LABELS} is {labels.shape}, want one label for each of {count} images"
        )
    _require_free(path, math.prod(images.shape))
    try:
        numbers = None if labels is None else integers(labels)
    except TypeError as error:
        raise DiffctlError(f"{printable(path)}: {LABELS} is {error}") from None
    return np.array(images), numbers


def _read_folder(path: Path) -> Images:
    listing = list_images(path)
    paths = listing.paths.take(np.arange(len(listing.paths)))
    names = [os.fsdecode(name) for name in paths]
    if not names:
        raise UsageError(f"{printable(path)} has no images: give a folder of image files, an npz or a store")
    if lossy := sum(name.lower().endswith(LOSSY) for name in names):
        found = f"{lossy:,} of the images in {printable(path)} are jpeg or webp"
        warnings.warn(f"{found}: lossy files change all scores", DiffctlWarning, stacklevel=2)
    _refuse(path, listing.problems)
    size = _common_size(path, names)
    _require_free(path, len(names) * size * size * 3)
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    step = max(1, min(MAX_FILES, MAX_PIXELS // (size * size * 3)))
    bad: list[Problem] = []
    for start in range(0, len(paths), step):
        rows = read_images(path, paths[start : start + step], size, 3)
        images[start : start + step] = rows.images
        bad += [Problem(names[start + row], why) for row, why in rows.bad.items()]
    _refuse(path, bad)
    return images


def _common_size(path: Path, names: list[str]) -> int:
    """Return the side of square images of one size in pixels; DiffctlError names an image that differs."""
    sizes, bad = [], []
    for name in names:
        try:
            with open_regular(path / name) as file, open_image(file) as image:
                sizes.append(image.size)
        except BadImage as error:
            bad.append(Problem(name, str(error)))
        except OSError as error:
            bad.append(Problem(name, f"not readable ({error.strerror})"))
    _refuse(path, bad)
    for name, (width, height) in zip(names, sizes, strict=True):
        if (width, height) != sizes[0] or width != height:
            raise DiffctlError(
                f"{printable(path / name)} is {width}×{height}, and {printable(names[0])} is "
                f"{sizes[0][0]}×{sizes[0][1]}: give square images of one size, resized like the reference"
            )
    return sizes[0][0]


def _refuse(path: Path, bad: Sequence[Problem]) -> None:
    """Raise a DiffctlError if there are unusable images."""
    if bad:
        found = f"{len(bad):,} of the images in {printable(path)} cannot be used"
        raise DiffctlError(f"{found}: {summarize(bad)}")


def _require_free(path: Path, needed: int) -> None:
    """Raise a DiffctlError unless `needed` bytes of memory are free."""
    if needed > (free := machine_memory()[1]):
        raise DiffctlError(
            f"the images in {printable(path)} take {format_bytes(needed)} of memory, and "
            f"{format_bytes(free)} are free: score fewer images, or an image store, which is not loaded into "
            "memory"
        )


def _check_size(sample: ImageStore, real: ImageStore, against: Path) -> None:
    if sample.images.shape[1:3] != real.images.shape[1:3]:
        sizes = ["×".join(map(str, store.images.shape[1:3])) for store in (sample, real)]
        raise DiffctlError(
            f"the images in {sample.path} are {sizes[0]} and those in {against} {sizes[1]}: "
            "resize them like the reference, since resizing changes every score"
        )


def _check_count(store: ImageStore) -> None:
    if len(store) < MIN_IMAGES:
        raise DiffctlError(f"scores need at least {MIN_IMAGES} images, and {store.path} has {len(store)}")
