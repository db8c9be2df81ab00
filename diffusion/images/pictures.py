"""Pictures of images: grids, PNG and GIF, made from uint8 NHWC arrays."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.images.decode import MOST_BYTES, BadImage, loaded, opened
from diffusion.images.store import Images
from diffusion.system.errors import UsageError, printable
from diffusion.system.plain_files import read_plain

SHOWN = 64  # pixels: smaller images are enlarged by whole factors to about this, so that a person sees them


def grid(images: Images, columns: int, gap: int = 1) -> Images:
    """(N, H, W, C) → one (H', W', C) picture, row by row, with white gaps of `gap` pixels."""
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
    """Repeat pixels by the whole factor that shows images of `image_size` at about 64 pixels."""
    factor = max(1, SHOWN // image_size)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def to_pil(picture: Images) -> Image.Image:
    """An (H, W, C) array as a Pillow image: grey, grey with alpha, RGB or RGBA by its channels."""
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def png_bytes(picture: Images) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="png")
    return buffer.getvalue()


def read_picture(path: Path, image_size: int, channels: int) -> Images:
    """An image file as (H, W, C) uint8 in the mode of that many channels; UsageError when it does not fit."""
    try:
        with opened(read_plain(path, MOST_BYTES)) as image:
            if image.size != (image_size, image_size):
                wanted, found = f"{image_size}×{image_size}", f"{image.width}×{image.height}"
                raise UsageError(f"{printable(path)} has {found} pixels: the model takes {wanted}")
            picture = loaded(image, channels)
    except FileNotFoundError:
        raise UsageError(f"no image at {printable(path)}") from None
    except (OSError, BadImage) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{printable(path)} is not an image that can be read ({why})") from None
    return np.asarray(picture, dtype=np.uint8).reshape(image_size, image_size, channels)


def gif_bytes(frames: Sequence[Images], seconds: float = 3.0, hold: float = 1.5) -> bytes:
    """Frames (H, W, C) as a looping GIF of about `seconds`, the last frame held for `hold`."""
    pictures = [to_pil(frame) for frame in frames]
    each = max(20, round(1000 * seconds / len(pictures)))
    durations = [each] * (len(pictures) - 1) + [round(1000 * hold)]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return buffer.getvalue()
