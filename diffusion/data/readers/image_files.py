"""Image files below a folder, CSV files with their classes, and images as rows of a split.

A listing takes a few bytes of memory per file. Rows are uint8 of one size, prepared as ADM does ImageNet
(2105.05233).
"""

import csv
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.data.source import ImageProblem, Indices, Job, Rows
from diffusion.images.image_size import Size, format_size
from diffusion.images.pictures import (
    MAX_BYTES,
    MAX_PIXELS,
    SUFFIXES,
    BadImage,
    UnreadImage,
    flatten,
    load_pixels,
    open_image,
    to_pil,
)
from diffusion.images.store import Images
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import AnyPath, read_regular, read_regular_text

SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
MAX_LIST = 1 << 28  # bytes of a list of classes; a million images take less than half of it
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")
SPLIT_COLUMNS = ("split",)
OTHER_PICTURES = tuple(b".heic .heif .avif .tif .tiff .bmp .jfif .jpe .jp2 .jxl .dng .cr2 .nef .arw".split())

Paths = NDArray[np.bytes_]
"""Relative paths of files."""
LARGE_PIXELS = 1 << 24  # a larger jpeg is decoded at a reduced scale, so that it fits in memory


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, other files among them, and pictures that cannot be used.

    `paths` (N,) are ordered by folder; `folders` has the prefix ("" or "a/b/") of each folder and its number
    of images. `content` changes with the name or size of any file; `identity` also with its time.
    """

    paths: Paths
    folders: list[tuple[str, int]]
    others: list[str]
    problems: list[ImageProblem]
    content: str
    identity: str


def as_text(paths: Paths) -> list[str]:
    """Return paths as text."""
    return [os.fsdecode(path) for path in paths.tolist()]


def list_images(root: Path) -> Listing:
    """List all images below `root`, without hidden files; follow each linked folder once.

    Pipes and broken links are listed and fail when they are read. DiffctlError for an unreadable folder.
    """
    columns: list[Paths] = [np.empty(0, np.bytes_)]
    folders: list[tuple[str, int]] = []
    others: list[str] = []
    problems: list[ImageProblem] = []
    content, identity = hashlib.sha256(), hashlib.sha256()
    for prefix, names in _walk(root):
        folder, images, stems = os.fsencode(prefix), [], set()
        for name in names:
            size, time = _size_and_time(os.fsencode(root / prefix) + b"/" + name)
            content.update(b"%b%b\0%d\n" % (folder, name, size))
            identity.update(time.to_bytes(8, "little", signed=True))
            stem, path = _stem(name), folder + name
            if stem is None and name.lower().endswith(OTHER_PICTURES):
                problems.append(ImageProblem(os.fsdecode(path), "not png, jpeg, webp or gif"))
            elif stem is None:
                others.append(os.fsdecode(path))
            elif stem in stems:
                problems.append(ImageProblem(os.fsdecode(path), "with the name of another"))
            else:
                stems.add(stem)
                images.append(path)
        if images:
            columns.append(np.array(images))
            folders.append((prefix, len(images)))
    identity.update(content.digest())
    paths = np.concatenate(columns)
    return Listing(paths, folders, others, problems, content.hexdigest(), identity.hexdigest())


def _walk(root: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Yield every folder below root in order: its prefix, and the sorted names of its visible files."""
    top = os.fsencode(root)
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(top, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        visible = (name for name in below if name[:1] != b"." and name != b"__MACOSX")
        below[:] = sorted(visible, key=os.fsdecode)
        prefix = os.fsdecode(folder.removeprefix(top).lstrip(b"/"))
        yield prefix and f"{prefix}/", sorted(name for name in names if name[:1] != b".")


def _refuse_folder(error: OSError) -> None:
    folder = printable(os.fsdecode(error.filename))
    raise DiffctlError(f"cannot read the folder {folder}: {error.strerror}") from None


def _size_and_time(path: bytes) -> tuple[int, int]:
    """Return size and time of a regular file, else 0 and 0."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)


def _stem(name: bytes) -> str | None:
    """Return an image's name without suffix, casefolded; None for another file."""
    stem, dot, suffix = os.fsdecode(name).rpartition(".")
    return stem.casefold() if dot and f".{suffix.lower()}" in SUFFIXES else None


def read_labels(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield file, label ("" if none) and split (None, train or test) of each row; DiffctlError if not CSV."""
    reader = csv.DictReader(io.StringIO(read_regular_text(path, MAX_LIST), newline=""))
    try:
        columns = list(reader.fieldnames or [])
        name_column = _required_column(path, columns, FILE_COLUMNS)
        label_column = _required_column(path, columns, LABEL_COLUMNS)
        split_column = _column(columns, SPLIT_COLUMNS)
        for values in reader:
            name = (values[name_column] or "").strip().replace("\\", "/").removeprefix("./")
            split = None if split_column is None else _split(path, values[split_column])
            yield name, (values[label_column] or "").strip(), split
    except csv.Error as error:
        raise UsageError(f"data.labels: {path} is not readable as CSV ({error})") from None


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((column for column in columns if column.strip().lower() in names), None)


def _required_column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    if (found := _column(columns, names)) is None:
        raise UsageError(f"data.labels: {path} needs a first line with a column {' or '.join(names)}")
    return found


def split_of(name: str) -> str | None:
    """Return the split, train or test, that a folder or a CSV names; None if it names none."""
    return SPLITS.get(name.casefold())


def _split(path: Path, name: str | None) -> str | None:
    name = (name or "").strip()
    if name and not split_of(name):
        found = printable(name)[:80]
        raise UsageError(f"data.labels: {path}: split {found!r} is not one of {', '.join(SPLITS)}")
    return split_of(name)


class ImageFileReader:
    """A reader of files by their paths below `root`, in order, as images of `size` (H, W) with `channels`."""

    heavy = True

    def __init__(self, root: Path, paths: Paths, size: Size, channels: int) -> None:
        self.root, self.paths, self.size, self.channels = root, paths, size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def job(self, start: int, stop: int) -> Job:
        """Return a job that decodes files `start` to `stop`."""
        return partial(read_images, self.root, self.paths[start:stop].tolist(), self.size, self.channels)

    def names(self, rows: Indices) -> list[str]:
        """Return the files' paths below the root."""
        return as_text(self.paths[rows])


def read_images(root: Path, paths: Sequence[bytes], size: Size, channels: int) -> Rows:
    """Return the files' images (n, H, W, channels) and SHA-256; unreadable ones are in `bad`."""
    folder = os.fsencode(root) + b"/"
    return images_of([partial(read_content, folder + path) for path in paths], size, channels)


def images_of(files: Sequence[Callable[[], bytes]], size: Size, channels: int) -> Rows:
    """Decode files given by functions that return their content or raise BadImage; as `read_images`."""
    height, width = size
    # One strip for all: exporting pixels of each small image would cost a twentieth of decoding it.
    strip = Image.new("L" if channels == 1 else "RGB", (width, height * len(files)))
    digests, bad, is_final = [], {}, True
    with warnings.catch_warnings(action="ignore"):  # what Pillow warns about is refused or harmless
        for index, read in enumerate(files):
            digest = bytes(32)
            try:
                content = read()
                digest = hashlib.sha256(content).digest()
                strip.paste(decode(content, size, channels), (0, height * index))
            except BadImage as error:
                bad[index] = str(error)
                is_final = is_final and not isinstance(error, UnreadImage)
            digests.append(digest)
    images = np.asarray(strip).reshape(len(files), height, width, channels)
    return Rows(images, bad, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32), is_final)


def read_content(path: AnyPath) -> bytes:
    """Return the content of an image file; UnreadImage if it cannot be read or is too large."""
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UnreadImage(f"not readable ({error.strerror})") from None


def decode(content: bytes, size: Size, channels: int) -> Image.Image:
    """Decode a file's content into an image of `size` (H, W), 8-bit grey (1 channel) or RGB (3).

    EXIF orientation is applied, transparency becomes white, `cover` scales and crops. BadImage if the image
    cannot be read completely.
    """
    with open_image(content) as image:
        if image.format == "JPEG" and image.width * image.height > LARGE_PIXELS:
            image.draft(None, (2 * size[1], 2 * size[0]))
        return cover(load_pixels(image, channels), size)


def cover(image: Image.Image, size: Size) -> Image.Image:
    """Scale the image until it just covers `size` (H, W), and crop the centre.

    A square gets the image's short side. The image is halved with a box filter while both sides are at least
    twice those of the size. Then it is scaled bicubically with antialiasing. An image that just covers the
    size keeps its pixels. BadImage for one so narrow that the scaled image would be huge.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        shape = (round(image.width * scale), round(image.height * scale))
        if shape[0] * shape[1] > MAX_PIXELS:
            raise BadImage("too narrow")
        image = image.resize(shape, Image.Resampling.BICUBIC)
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def conform(images: Images, size: Size, channels: int) -> Images:
    """Return a batch (N, H, W, C) as images of `size` with `channels`; unchanged if it has that shape.

    Each channel is scaled alone: alpha, the last one of two or four, does not weight the others.
    """
    shape = (*size, channels)
    if images.shape[1:] == shape:
        return images
    out = np.empty((len(images), *shape), dtype=np.uint8)
    for index, image in enumerate(images):
        bands = flatten(to_pil(image), channels).split()
        out[index] = np.stack([np.asarray(cover(band, size)) for band in bands], axis=-1)
    return out


def transforms(native: tuple[int, int, int] | None, size: Size, channels: int) -> list[str]:
    """Describe, for meta.json, the conversion of images of shape `native` (None: of many shapes)."""
    target = f"short side to {size[0]}" if size[0] == size[1] else f"scaled to cover {format_size(size)}"
    scaling = [f"{target}: halved by box, then bicubic", f"centre crop to {format_size(size)}"]
    if native is None:
        return [f"decoded to {'grey' if channels == 1 else 'RGB'}, turned by EXIF, on white", *scaling]
    colour = {(1, 3): ["grey to RGB"], (3, 1): ["RGB to grey (ITU-R 601-2)"]}.get((native[2], channels), [])
    return colour if native[:2] == size else [*colour, *scaling]
