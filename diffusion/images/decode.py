"""Decoding of untrusted image files: png, jpeg, webp and gif (the first frame) only."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion.system.errors import DiffctlError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by the number of channels
MAX_BYTES = 256 << 20  # of a file; enough for any image of the allowed size
MAX_PIXELS = 1 << 26  # 8192×8192; more is a decompression bomb
MAX_SCANNED = 1 << 31  # pixels times scans of a progressive jpeg
STRIP_PIXELS = 1 << 20  # of 16 bits, converted per strip

_BOMB = f"with more than {MAX_PIXELS >> 20} million pixels"


class BadImage(Exception):
    """The bytes are no usable image; the message is a short reason."""


@contextmanager
def open_image(source: bytes | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image, not loaded yet; BadImage for any fault, also in the block, but not a DiffctlError."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            _refuse_bomb(image, source)
            yield image
    except (BadImage, DiffctlError):
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage(_BOMB) from None
    except MemoryError:
        raise BadImage("too large for the memory that is free") from None
    except Exception as error:  # decoders raise any type for damaged bytes
        raise BadImage(_reason(error)) from None


def _refuse_bomb(image: Image.Image, source: bytes | IO[bytes]) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise BadImage(_BOMB)
    if isinstance(source, bytes) and source[:2] == b"\xff\xd8":
        scans = source.count(b"\xff\xda")  # a marker: within coded pixels, 0xff is followed by a zero
        if scans * pixels > MAX_SCANNED:
            raise BadImage("with too many scans")


def _reason(error: Exception) -> str:
    text = str(error).lower()
    return "truncated" if "truncated" in text or isinstance(error, EOFError) else "damaged"


def load_pixels(image: Image.Image, channels: int) -> Image.Image:
    """Decode an opened image completely, apply its EXIF orientation, and convert it as `flatten` does."""
    image.load()
    if "exif" in image.info:
        ImageOps.exif_transpose(image, in_place=True)
    return flatten(image, channels)


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8 bits per channel; with 1 or 3 channels transparency becomes white."""
    mode = MODES[channels]
    is_transparent = image.has_transparency_data
    if image.mode == mode and (channels in (2, 4) or not is_transparent):
        return image
    if image.mode.startswith("I"):
        return _eight_bits(image).convert(mode)
    if is_transparent and channels in (1, 3):
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image of 16-bit grey in strips, to use little memory."""
    out = Image.new("L", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        levels = np.asarray(strip).astype(np.int32).clip(0, 65535)
        out.paste(Image.fromarray(((levels + 128) // 257).astype(np.uint8)), (0, top))
    return out
