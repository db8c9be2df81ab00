"""Any set of images, opened as a store: a store, a folder of image files, or an npz in OpenAI's format."""

import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.readers.image_files import read_images
from diffusion.data.readers.listing import list_images
from diffusion.data.rejects import Problem, summary
from diffusion.images.digests import content_digest
from diffusion.images.store import Images, ImageStore, Labels, open_store
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError

LOSSY = (".jpg", ".jpeg", ".webp")
READ_ROWS = 256  # files at a time


def is_store(path: Path) -> bool:
    """Whether a folder is an image store."""
    return (path / "images.npy").is_file()


def is_prepared(path: Path) -> bool:
    """Whether a folder is a prepared data set: stores train/ and test/."""
    return is_store(path / "train") and is_store(path / "test")


def open_images(path: Path) -> ImageStore:
    """The images at `path` in their order, files by name, as a store.

    An npz holds `arr_0`, uint8 (N, H, W, C), and may hold labels in `arr_1`. Image files become RGB and must
    be square and of one size, since resizing them would move every score. UsageError when there is nothing
    to open, DiffctlError for damaged or unfit images; a DiffctlWarning for lossy files.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_file():
        images, labels = _read_npz(path)
    elif is_store(path):
        return open_store(path)
    elif is_prepared(path):
        raise UsageError(f"{path} holds two splits: give {path / 'train'} or {path / 'test'}")
    else:
        images, labels = _read_folder(path), None
    return ImageStore(path, images, labels, {"name": path.name, "digest": content_digest(images, labels)})


def _read_npz(path: Path) -> tuple[Images, Labels | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
            labels = file["arr_1"].astype(np.int64) if "arr_1" in file.files else None
    except (KeyError, AttributeError, TypeError):
        raise DiffctlError(f"{path} has no arr_0: images in an npz stand under that name") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DiffctlError(f"{path} is not a whole npz file ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DiffctlError(f"{path}: arr_0 is {images.dtype} {images.shape}, want uint8 (N, H, W, C)")
    if labels is not None and labels.shape != (len(images),):
        raise DiffctlError(
            f"{path}: arr_1 is {labels.shape}, want one label for each of {len(images)} images"
        )
    return images, labels


def _read_folder(path: Path) -> Images:
    listing = list_images(path)
    paths = listing.paths.take(np.arange(len(listing.paths)))
    names = [os.fsdecode(name) for name in paths]
    if not names:
        raise UsageError(f"{path} has no images: give a folder of png or jpeg files, an npz, or a store")
    if lossy := sum(name.lower().endswith(LOSSY) for name in names):
        warnings.warn(
            DiffctlWarning(
                f"{lossy:,} of the images in {path} are jpeg or webp: their losses move every score"
            ),
            stacklevel=2,
        )
    size = _common_size(path, names)
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    bad = list(listing.problems)
    for start in range(0, len(paths), READ_ROWS):
        rows = read_images(path, paths[start : start + READ_ROWS], size, 3)
        images[start : start + READ_ROWS] = rows.images
        bad += [Problem(names[start + row], why) for row, why in rows.bad.items()]
    if bad:
        raise DiffctlError(f"{len(bad):,} of the images in {path} cannot be used: {summary(bad)}")
    return images


def _common_size(path: Path, names: list[str]) -> int:
    """The side of square images in pixels; DiffctlError names the first file that is of another size."""
    first: tuple[int, int] | None = None
    for name in names:
        try:
            with Image.open(path / name) as image:
                size = image.size
        except OSError as error:
            raise DiffctlError(f"{path / name} cannot be read as an image ({error})") from None
        first = first or size
        if size != first or size[0] != size[1]:
            raise DiffctlError(
                f"{path / name} is {size[0]}×{size[1]}, and {names[0]} is {first[0]}×{first[1]}: "
                f"scores need square images of one size, so make them the way the reference was made"
            )
    assert first is not None, "there are names"
    return first[0]
