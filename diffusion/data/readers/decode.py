"""Image files of strangers to squares of uint8: png, jpeg, webp, gif (the first frame)."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion.data.readers.resize import flatten, square

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
MAX_PIXELS = 1 << 26  # 8192×8192: more is a decompression bomb, or belongs cut up
LARGE_PIXELS = 1 << 24  # a jpeg above this is decoded at a reduced scale, so that it fits in memory

_BOMB = f"with more than {MAX_PIXELS >> 20} million pixels"


class BadImage(Exception):
    """The bytes are no usable image; the message says why in a few words."""


def decode(content: bytes, size: int, channels: int) -> Image.Image:
    """The image of a file's content as a square of `size` pixels, 8-bit grey (1 channel) or RGB (3).

    It is turned as EXIF says, laid on white where it is transparent, scaled and cropped as `square` does.
    BadImage when it cannot be read whole.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_bomb(image)
            if image.format == "JPEG" and image.width * image.height > LARGE_PIXELS:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            if "exif" in image.info:
                ImageOps.exif_transpose(image, in_place=True)
            return square(flatten(image, channels), size)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage(_BOMB) from None
    except Exception as error:  # a decoder may raise anything at damaged bytes
        raise BadImage(_reason(error)) from None


def _refuse_bomb(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(_BOMB)


def _reason(error: Exception) -> str:
    text = str(error).lower()
    return "truncated" if "truncated" in text or isinstance(error, EOFError) else "damaged"
