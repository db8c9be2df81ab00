"""Image files as rows of a split: uint8 of one size, prepared as ADM does ImageNet (2105.05233)."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.readers.listing import Paths, as_text
from diffusion.data.source import Indices, Job, Rows
from diffusion.images.image_size import Size, format_size
from diffusion.images.pictures import (
    MAX_BYTES,
    MAX_PIXELS,
    BadImage,
    UnreadImage,
    flatten,
    load_pixels,
    open_image,
    to_pil,
)
from diffusion.images.store import Images
from diffusion.system.files import AnyPath, read_regular

LARGE_PIXELS = 1 << 24  # a larger jpeg is decoded at a reduced scale, so that it fits in memory


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
