"""Pictures: untrusted image files decoded within limits, and uint8 NHWC arrays as grids, PNG and GIF.

Only png, jpeg, webp and gif (the first frame) are decoded.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from diffusion.images.image_size import Size, format_pixels, format_size
from diffusion.images.store import Images
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import read_regular

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by the number of channels
MAX_BYTES = 256 << 20  # of a file; enough for any image of the allowed size
MAX_PIXELS = 1 << 26  # 8192×8192; more is a decompression bomb
MAX_SCANNED = 1 << 31  # pixels times scans of a progressive jpeg
GREY_LEVELS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by, by its raw mode

GAP = 2  # pixels between the images of a sheet
MONTAGE, MONTAGE_COLUMNS = 40, 10  # images of a montage: ten classes in turn give one column each
DISPLAY_SIZE = 64  # pixels: smaller images are enlarged by integer factors to about this size


class BadImage(Exception):
    """The bytes are no usable image; the message is a short reason."""


class UnreadImage(BadImage):
    """The image was not read for a reason outside of its bytes, such as too little memory."""


@contextmanager
def open_image(content: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open an image, not loaded yet; BadImage for any fault, also in the block, but not a DiffctlError."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise Image.DecompressionBombError
            # A scan's marker: within coded pixels, 0xff is followed by a zero.
            if content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") * pixels > MAX_SCANNED:
                raise BadImage("with too many scans")
            yield image
    except (BadImage, DiffctlError):
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage(f"with more than {MAX_PIXELS >> 20} million pixels") from None
    except MemoryError:
        raise UnreadImage("too large for the memory that is free") from None
    except Exception as error:  # decoders raise any type for damaged bytes
        is_cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if is_cut else "damaged") from None


def load_pixels(image: ImageFile.ImageFile, channels: int) -> Image.Image:
    """Decode an opened image completely, apply its EXIF orientation, and convert it as `flatten` does."""
    _scale_transparency(image)
    image.load()
    if "exif" in image.info:
        ImageOps.exif_transpose(image, in_place=True)
    return flatten(image, channels)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Convert the transparent colour of a PNG to 8 bits, as Pillow does with the pixels alone.

    Of 16-bit RGB every colour with the same 8 bits is transparent: Pillow drops the others.
    """
    raw = str(image.tile[0][3]) if image.tile else ""
    colour = image.info.get("transparency")
    if raw == "RGB;16B" and colour is not None:
        image.info["transparency"] = tuple(level >> 8 for level in colour)
    elif raw in GREY_LEVELS and colour is not None:
        image.info["transparency"] = GREY_LEVELS[raw] * colour


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8 bits per channel; with 1 or 3 channels transparency becomes white."""
    mode = MODES[channels]
    is_transparent = image.has_transparency_data
    if image.mode == mode and (channels in (2, 4) or not is_transparent):
        return image
    if image.mode.startswith("I"):  # 16-bit grey
        image = _eight_bits(image)
    if is_transparent and channels in (1, 3):
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8 bits, and its transparent level, if any, to alpha."""
    grey = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")
    if image.has_transparency_data:
        grey.putalpha(Image.fromarray(np.asarray(image) != image.info["transparency"]))
    return grey


def read_picture(path: Path, size: Size | None, channels: int) -> Images:
    """Return an image file as (H, W, C) uint8; UsageError unless it can be read and has the size, if any."""
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise _unreadable(printable(path), error.strerror) from None
    return decode_picture(content, printable(path), size, channels)


def decode_picture(content: bytes, name: str, size: Size | None, channels: int) -> Images:
    """Decode a file's content, as `read_picture`; messages use `name`."""
    try:
        with open_image(content) as image:
            picture: Image.Image = image
            if size is None or sorted(image.size) == sorted(size):  # another size is not worth decoding
                picture = load_pixels(image, channels)  # which may turn it
            found = picture.height, picture.width
            if size is not None and found != size:
                raise UsageError(f"{name} has {format_pixels(found)}: the model takes {format_size(size)}")
    except BadImage as error:
        raise _unreadable(name, error) from None
    return np.asarray(picture, dtype=np.uint8).reshape(*found, channels)


def _unreadable(name: str, why: object) -> UsageError:
    return UsageError(f"{name} is not an image that can be read ({why})")


def fit(pixels: Images, size: Size) -> Images:
    """Return the middle of a picture (H, W, C), resized to another height and width."""
    if pixels.shape[:2] == size:
        return pixels
    fitted = ImageOps.fit(to_pil(pixels).convert(MODES[pixels.shape[2]]), size[::-1])
    return np.asarray(fitted, dtype=np.uint8).reshape(*size, pixels.shape[2])


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


def enlarge(picture: Images, size: Sequence[int], factor: int | None = None) -> Images:
    """Repeat pixels `factor` times, by default so that an image of `size` has about 64 at the longer side."""
    factor = factor or max(1, DISPLAY_SIZE // max(size))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def sheet(images: Images, columns: int) -> Images:
    """Arrange (N, H, W, C) images in one enlarged picture (H', W', C) with thin white gaps."""
    return grid(np.stack([enlarge(image, image.shape[:2]) for image in images]), columns, GAP)


def montage(images: Images) -> Images:
    """Return the first images of a set as one enlarged picture, 10 per row."""
    return sheet(images[:MONTAGE], MONTAGE_COLUMNS)


def contact_sheet(images: Images, factor: int | None = None) -> Images:
    """Arrange (N, H, W, C) images in one picture, enlarged by a factor: ten per row, or about square."""
    columns = min(len(images), 10 if len(images) % 10 == 0 else max(1, round(len(images) ** 0.5)))
    return enlarge(grid(images, columns), images.shape[1:3], factor)


def to_pil(picture: Images) -> Image.Image:
    """Convert an (H, W, C) array to a Pillow image: grey, grey with alpha, RGB or RGBA by channels."""
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def png_bytes(picture: Images) -> bytes:
    """Encode the picture as PNG."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="png")
    return buffer.getvalue()


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
