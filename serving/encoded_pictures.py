"""Pictures in the bodies of requests."""

import base64
import binascii
import contextlib

from diffusion.images.image_size import Size, format_pixels
from diffusion.images.pictures import BadImage, decode_picture, open_image
from diffusion.images.store import Images
from diffusion.system.errors import UsageError
from serving.schemas import MAX_EDIT_PIXELS


def decode_base64(text: str, name: str, channels: int, size: Size | None = None) -> Images:
    """Return a picture in base64 as (H, W, C) uint8; raise UsageError for anything else, or if too large."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise UsageError(f"{name} is not in base64: give the bytes of its file, encoded") from None
    with contextlib.suppress(BadImage), open_image(content) as image:  # decode_picture names a fault
        if image.width * image.height > MAX_EDIT_PIXELS:
            found = format_pixels((image.height, image.width))
            raise UsageError(f"{name} has {found}: give {MAX_EDIT_PIXELS >> 20} million at most")
    return decode_picture(content, name, size, channels)
