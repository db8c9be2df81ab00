"""Image files as rows of a split: squares of uint8, as ADM prepares ImageNet (2105.05233)."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.holdout import Indices
from diffusion.data.readers.listing import Paths, as_text
from diffusion.data.source import Job, Rows
from diffusion.images.pictures import MAX_BYTES, MAX_PIXELS, BadImage, flatten, load_pixels, open_image
from diffusion.images.store import Images
from diffusion.system.files import AnyPath, read_regular

LARGE_PIXELS = 1 << 24  # a larger jpeg is decoded at a reduced scale, so that it fits in memory


class ImageFileReader:
    """A reader of files by their paths below `root`, in order, as squares of `size` with `channels`."""

    heavy = True

    def __init__(self, root: Path, paths: Paths, size: int, channels: int) -> None:
        self.root, self.paths, self.size, self.channels = root, paths, size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def job(self, start: int, stop: int) -> Job:
        """Return a job that decodes files `start` to `stop`."""
        return partial(read_images, self.root, self.paths[start:stop].tolist(), self.size, self.channels)

    def names(self, rows: Indices) -> list[str]:
        """Return the files' paths below the root."""
        return as_text(self.paths[rows])


def read_images(root: Path, paths: Sequence[bytes], size: int, channels: int) -> Rows:
    """Return the files' images (n, size, size, channels) and SHA-256; unreadable ones are in `bad`."""
    folder = os.fsencode(root) + b"/"
    return images_of([partial(read_content, folder + path) for path in paths], size, channels)


def images_of(files: Sequence[Callable[[], bytes]], size: int, channels: int) -> Rows:
    """Decode files given by functions that return their content or raise BadImage; as `read_images`."""
    # One strip for all: exporting pixels of each small image would cost a twentieth of decoding it.
    strip = Image.new("L" if channels == 1 else "RGB", (size, size * len(files)))
    digests, bad = [], {}
    with warnings.catch_warnings(action="ignore"):  # what Pillow warns about is refused or harmless
        for index, read in enumerate(files):
            digest = bytes(32)
            try:
                content = read()
                digest = hashlib.sha256(content).digest()
                strip.paste(decode(content, size, channels), (0, size * index))
            except BadImage as error:
                bad[index] = str(error)
            digests.append(digest)
    images = np.asarray(strip).reshape(len(files), size, size, channels)
    return Rows(images, bad, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32))


def read_content(path: AnyPath) -> bytes:
    """Return the content of an image file; BadImage if it cannot be read or is too large."""
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise BadImage(f"not readable ({error.strerror})") from None


def decode(content: bytes, size: int, channels: int) -> Image.Image:
    """Decode a file's content into a square of `size` pixels, 8-bit grey (1 channel) or RGB (3).

    EXIF orientation is applied, transparency becomes white, `square` scales and crops. BadImage if the image
    cannot be read completely.
    """
    with open_image(content) as image:
        if image.format == "JPEG" and image.width * image.height > LARGE_PIXELS:
            image.draft(None, (2 * size, 2 * size))
        return square(load_pixels(image, channels), size)


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` and crop the centre.

    The image is halved with a box filter while its short side is at least twice the size. Then it is scaled
    bicubically with antialiasing. An image of that size keeps its pixels. BadImage for one so narrow that the
    scaled image would be huge.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        shape = (round(image.width * scale), round(image.height * scale))
        if shape[0] * shape[1] > MAX_PIXELS:
            raise BadImage("too narrow")
        image = image.resize(shape, Image.Resampling.BICUBIC)
    if image.size == (size, size):
        return image
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def conform(images: Images, size: int, channels: int) -> Images:
    """Return a batch (N, H, W, C) as squares (N, size, size, channels); unchanged if it has that shape."""
    if images.shape[1:] == (size, size, channels):
        return images
    out = np.empty((len(images), size, size, channels), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        out[index] = np.asarray(square(flatten(picture, channels), size)).reshape(size, size, channels)
    return out


def transforms(native: tuple[int, int, int] | None, size: int, channels: int) -> list[str]:
    """Describe, for meta.json, the conversion of images of shape `native` (None: of many shapes)."""
    scaling = [f"short side to {size}: halved by box, then bicubic", f"centre crop to {size}×{size}"]
    if native is None:
        return [f"decoded to {'grey' if channels == 1 else 'RGB'}, turned by EXIF, on white", *scaling]
    colour = {(1, 3): ["grey to RGB"], (3, 1): ["RGB to grey (ITU-R 601-2)"]}.get((native[2], channels), [])
    return colour if native[:2] == (size, size) else [*colour, *scaling]
