"""Image files of strangers to squares of uint8."""

from PIL import Image

from diffusion.data.readers.resize import square
from diffusion.images.decode import load_pixels, open_image

LARGE_PIXELS = 1 << 24  # a jpeg above this is decoded at a reduced scale, so that it fits in memory


def decode(content: bytes, size: int, channels: int) -> Image.Image:
    """The image of a file's content as a square of `size` pixels, 8-bit grey (1 channel) or RGB (3).

    It is turned as EXIF says, laid on white where it is transparent, scaled and cropped as `square` does.
    BadImage when it cannot be read whole.
    """
    with open_image(content) as image:
        if image.format == "JPEG" and image.width * image.height > LARGE_PIXELS:
            image.draft(None, (2 * size, 2 * size))
        return square(load_pixels(image, channels), size)
