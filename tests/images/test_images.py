"""Pixels ↔ model values, layouts, grids and picture files round trip."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from diffusion.images.pictures import enlarge, gif_bytes, grid, png_bytes
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8

CHANNELS = st.integers(1, 4)


@st.composite
def images(draw: st.DrawFn, count: st.SearchStrategy[int] = st.integers(1, 5)) -> np.ndarray:  # noqa: B008
    shape = (draw(count), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(CHANNELS))
    return draw(st_numpy.arrays(np.uint8, shape))


def test_pixel_values_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = to_model(pixels)
    assert values.dtype == torch.float32
    assert float(values.min()) == -1
    assert float(values.max()) == 1
    assert torch.equal(to_uint8(values), pixels)
    assert torch.equal(to_uint8(values.double()), pixels)


def test_values_are_rounded_and_clamped():
    values = torch.tensor([-30.0, -1.004, -0.9965, 0.0, 0.0044, 1.0, 1.01, 30.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


@given(images())
@settings(deadline=None)
def test_layouts_round_trip(pixels):
    tensor = to_nchw(pixels)
    assert tensor.shape == (len(pixels), pixels.shape[3], *pixels.shape[1:3])
    assert tensor.is_contiguous()
    back = to_nhwc(tensor)
    assert back.flags["C_CONTIGUOUS"]
    assert np.array_equal(back, pixels)
    assert np.array_equal(to_nhwc(to_uint8(to_model(tensor))), pixels)


def test_to_nchw_copies():
    pixels = np.zeros((1, 2, 2, 1), np.uint8)
    tensor = to_nchw(pixels)
    tensor += 1
    assert pixels.sum() == 0


@given(images(), st.integers(1, 6))
@settings(deadline=None)
def test_grid_has_every_image_and_white_gaps(pixels, columns):
    picture = grid(pixels, columns)
    count, height, width, _ = pixels.shape
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        assert np.array_equal(picture[top : top + height, left : left + width], image)
    held = count * height * width
    assert (picture == 255).all(axis=2).sum() >= picture.shape[0] * picture.shape[1] - held


@given(images(st.just(1)))
@settings(deadline=None)
def test_png_is_lossless(pixels):
    opened = np.asarray(Image.open(io.BytesIO(png_bytes(pixels[0]))))
    assert np.array_equal(opened.reshape(pixels[0].shape), pixels[0])


@pytest.mark.parametrize(("size", "factor"), [(8, 8), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_small_images_are_enlarged_by_integer_factors(size, factor):
    picture = np.arange(size * size, dtype=np.uint8).reshape(size, size, 1)
    large = enlarge(picture, size)
    assert large.shape == (size * factor, size * factor, 1)
    assert np.array_equal(large[::factor, ::factor], picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_every_frame_and_holds_the_last(channels):
    frames = [np.full((8, 8, channels), value, np.uint8) for value in (0, 100, 200)]
    with Image.open(io.BytesIO(gif_bytes(frames, seconds=0.3, hold=1.0))) as opened:
        assert opened.n_frames == 3
        opened.seek(2)
        assert opened.info["duration"] == 1000
        assert abs(int(np.asarray(opened.convert("L"))[0, 0]) - 200) <= 1
