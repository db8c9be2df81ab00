"""An image file in a data set, in a folder to score, or given to a command."""

import io
import struct
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.readers.image_files import read_images
from diffusion.evaluate.adhoc_inputs import open_images
from diffusion.images.pictures import read_picture
from diffusion.system.errors import DiffctlError
from tests.helpers.raw_data import random_images

NAME = "input.png"
SIZE = 12
PNG = b"\x89PNG\r\n\x1a\n"


@cache
def seeds() -> list[bytes]:
    """Return all formats and modes: grey, palette, 16 bits, transparent, CMYK, progressive, rotated,
    animated.
    """
    noise = Image.fromarray(random_images(0, 1, SIZE)[0])
    frames = [Image.fromarray(image) for image in random_images(1, 2, SIZE)]
    levels = Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": frames}
    kinds = [
        *[(noise.convert(mode), "PNG", {}) for mode in ("RGB", "L", "P", "1", "LA", "RGBA")],
        (levels, "PNG", {}),
        (noise, "PNG", {"exif": exif}),
        (noise.convert("P"), "PNG", {"transparency": 1}),
        *[(noise.convert(mode), "JPEG", {}) for mode in ("RGB", "L", "CMYK")],
        (noise, "JPEG", {"progressive": True, "exif": exif}),
        (noise, "WEBP", {}),
        (noise, "WEBP", {"lossless": True, "exif": exif}),
        (noise.convert("RGBA"), "WEBP", animated),
        (noise, "GIF", animated),
        (noise.convert("P"), "GIF", {"transparency": 1}),
    ]
    return [_encoded(*kind) for kind in kinds]


def _encoded(image: Image.Image, form: str, options: dict) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def parse(path: Path) -> None:
    """Read it as a row of a split, as a picture for a model, and its folder as images to score."""
    for channels in (1, 3):
        rows = read_images(path.parent, [path.name.encode()], SIZE, channels)
        assert rows.images.shape == (1, SIZE, SIZE, channels)
        assert not rows.bad or not rows.images.any()
    for channels in (1, 2, 3, 4):
        with suppress(DiffctlError):
            assert read_picture(path, SIZE, channels).shape == (SIZE, SIZE, channels)
    open_images(path.parent)
    assert not rows.bad


def repair(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks."""
    if not data.startswith(PNG):
        return data
    made, at = bytearray(PNG), len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        content = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + content + struct.pack(">I", zlib.crc32(content))
        at += 12 + length
    return bytes(made + data[at:])
