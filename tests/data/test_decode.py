"""Image decoding for data sets: ADM's squares, every format, EXIF, transparency, damage."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from diffusion.data.readers.image_files import conform, cover, decode
from diffusion.images.pictures import BadImage, flatten, to_pil
from tests.helpers.damaged_bytes import png
from tests.helpers.raw_data import encoded, random_images


def noise(size=16, seed=0):
    return Image.fromarray(random_images(seed, 1, size)[0])


def pixels_of(content, size, channels):
    return np.asarray(decode(content, (size, size), channels)).reshape(size, size, channels)


def adm_crop(image, size):
    """Crop as ADM does for ImageNet, with the number of halvings in closed form; ADM's sizes are squares."""
    height, width = size
    for _ in range(min(image.width // width, image.height // height).bit_length() - 1):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    rows, columns, _ = (pixels := np.asarray(image)).shape
    return pixels[(rows - height) // 2 :, (columns - width) // 2 :][:height, :width]


@given(
    width=st.integers(5, 150),
    height=st.integers(5, 150),
    size=st.sampled_from([(5, 5), (8, 8), (32, 32), (64, 64), (8, 16), (40, 12)]),
)
def test_crops_equal_adm(width, height, size):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(cover(image, size)), adm_crop(image, size))


@given(
    native=st.sampled_from([1, 2, 3, 4]), channels=st.sampled_from([1, 3]), size=st.sampled_from([8, 12, 20])
)
def test_batch_equals_single_images(native, channels, size):
    images = random_images(0, 3, 12, native)
    out = conform(images, (size, size), channels)
    assert out.shape == (3, size, size, channels)
    for image, found in zip(images, out, strict=True):
        np.testing.assert_array_equal(found, pixels_of(encoded(to_pil(image)), size, channels))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_each_channel_of_an_array_is_scaled_alone(channels):
    images = random_images(0, 3, 12, channels)
    small = conform(images, (8, 8), channels)
    for channel in range(channels):
        alone = conform(images[..., channel : channel + 1], (8, 8), 1)
        np.testing.assert_array_equal(small[..., channel : channel + 1], alone)


def test_grey_palette_and_cmyk_become_rgb():
    for mode in ("L", "P", "1", "CMYK"):
        image = noise().convert(mode)
        content = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
        with Image.open(io.BytesIO(content)) as back:
            np.testing.assert_array_equal(pixels_of(content, 16, 3), np.asarray(back.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(mode):
    image = noise().convert(mode)
    image.putalpha(0)
    np.testing.assert_array_equal(pixels_of(encoded(image), 16, 3), 255)
    image.putalpha(255)
    opaque = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(encoded(image), 16, 3), opaque)
    image.putalpha(128)
    half = pixels_of(encoded(image), 16, 3).astype(int)
    np.testing.assert_allclose(half, (opaque.astype(int) * 128 + 255 * 127) / 255, atol=1.1)


def test_sixteen_bits_are_scaled():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = pixels_of(encoded(Image.fromarray(levels)), 8, 1)[..., 0]
    np.testing.assert_array_equal(found, np.round(levels / 257))


def test_transparent_level_of_sixteen_bits_is_white():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    content = encoded(Image.fromarray(levels), transparency=int(levels[0, 3]))
    expected = np.round(levels / 257)
    expected[0, 3] = 255
    np.testing.assert_array_equal(pixels_of(content, 8, 1)[..., 0], expected)
    with Image.open(io.BytesIO(content)) as image:
        alpha = np.asarray(flatten(image, 2))[..., 1]
    np.testing.assert_array_equal(alpha == 0, levels == levels[0, 3])


def test_transparent_colour_of_sixteen_bits_is_white():
    """Not a colour whose 8 bits are the lower ones of the transparent one."""
    colours = np.array([[[0x1234, 0x5678, 0x9ABC], [0x3400, 0x7800, 0xBC00]], [[0] * 3, [0xFFFF] * 3]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    content = png(2, 2, depth=16, data=zlib.compress(rows), transparent=colours[0, 0].tobytes())
    expected = colours >> 8
    expected[0, 0] = 255
    np.testing.assert_array_equal(pixels_of(content, 2, 3), expected)


@pytest.mark.parametrize(("depth", "rows", "grey"), [(2, b"\0\x10\0\xb0", 85), (4, b"\0\x01\0\x2f", 17)])
def test_transparent_level_of_few_bits_is_white(depth, rows, grey):
    content = png(2, 2, depth=depth, kind=0, data=zlib.compress(rows), transparent=b"\0\2")
    np.testing.assert_array_equal(pixels_of(content, 2, 1)[..., 0], [[0, grey], [255, 255]])


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_equals_pillow_with_exif_orientation(form, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(), form, exif=exif, **options)
    for channels, mode in ((1, "L"), (3, "RGB")):
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert(mode)).reshape(16, 16, channels)
        np.testing.assert_array_equal(pixels_of(content, 16, channels), expected)


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_animation_gives_first_frame(form, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels_of(content, 8, 3), np.tile([255, 0, 0], (8, 8, 1)))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_truncated_image_is_bad(form):
    content = encoded(noise(64), form)
    with pytest.raises(BadImage, match=r"^(truncated|damaged|not an image)$"):
        pixels_of(content[: len(content) // 2], 64, 3)
