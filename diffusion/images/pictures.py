"""Grids, PNG and GIF from uint8 NHWC arrays, and image files as arrays."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.images.decode import MAX_BYTES, BadImage, load_pixels, open_image
from diffusion.images.store import Images
from diffusion.system.errors import UsageError, printable
from diffusion.system.regular_files import read_regular

GAP = 2  # pixels between the images of a sheet
MONTAGE, MONTAGE_COLUMNS = 40, 10  # images of a montage: ten classes in turn give one column each
DISPLAY_SIZE = 64  # pixels: smaller images are enlarged by integer factors to about this size


def grid(images: Images, columns: int, gap: int = 1) -> Images:
    """Arrange (N, H, W, C) images in one (H', W', C) picture, row by row, with white gaps of `gap` pixels."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    picture = np.full(
        (rows * (height + gap) - gap, min(columns, count) * (width + gap) - gap, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def enlarge(picture: Images, image_size: int) -> Images:
    """Repeat pixels by the integer factor that brings images of `image_size` to about 64 pixels."""
    factor = max(1, DISPLAY_SIZE // image_size)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def sheet(images: Images, columns: int) -> Images:
    """Arrange (N, H, W, C) images in one enlarged picture (H', W', C) with thin white gaps."""
    return grid(np.stack([enlarge(image, image.shape[0]) for image in images]), columns, GAP)


def montage(images: Images) -> Images:
    """Return the first images of a set as one enlarged picture, 10 per row."""
    return sheet(images[:MONTAGE], MONTAGE_COLUMNS)


def to_pil(picture: Images) -> Image.Image:
    """Convert an (H, W, C) array to a Pillow image: grey, grey with alpha, RGB or RGBA by channels."""
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def png_bytes(picture: Images) -> bytes:
    """Encode the picture as PNG."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="png")
    return buffer.getvalue()


def read_picture(path: Path, image_size: int | None, channels: int) -> Images:
    """Return an image file as (H, W, C) uint8; UsageError unless it fits, a square if `image_size` is set."""
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(f"no image at {printable(path)}") from None
    except OSError as error:
        raise _unreadable(printable(path), error.strerror) from None
    return decode_picture(content, printable(path), image_size, channels)


def decode_picture(content: bytes, name: str, image_size: int | None, channels: int) -> Images:
    """Decode a file's content, as `read_picture`; messages use `name`."""
    try:
        with open_image(content) as image:
            if image_size is not None and image.size != (image_size, image_size):
                wanted, found = f"{image_size}×{image_size}", f"{image.width}×{image.height}"
                raise UsageError(f"{name} has {found} pixels: the model takes {wanted}")
            picture = load_pixels(image, channels)
    except BadImage as error:
        raise _unreadable(name, error) from None
    return np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, channels)


def _unreadable(name: str, why: object) -> UsageError:
    return UsageError(f"{name} is not an image that can be read ({why})")


def gif_bytes(frames: Sequence[Images], seconds: float = 3.0, hold: float = 1.5) -> bytes:
    """Encode frames (H, W, C) as a looping GIF of about `seconds`; the last frame stays for `hold`."""
    pictures = [to_pil(frame) for frame in frames]
    each = max(20, round(1000 * seconds / len(pictures)))
    durations = [each] * (len(pictures) - 1) + [round(1000 * hold)]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def contact_sheet(images: Images) -> Images:
    """Arrange (N, H, W, C) images in one picture: ten per row, or about square."""
    columns = min(len(images), 10 if len(images) % 10 == 0 else max(1, round(len(images) ** 0.5)))
    return enlarge(grid(images, columns), images.shape[1])
