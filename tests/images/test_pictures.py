"""Pixels and pictures: values, layouts and files round trip; untrusted files are decoded within limits."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from diffusion.analysis.image_inputs import load_input
from diffusion.data.readers.image_files import decode
from diffusion.images.pictures import (
    MAX_PIXELS,
    MAX_SCANNED,
    BadImage,
    enlarge,
    gif_bytes,
    grid,
    read_picture,
)
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import write_store
from diffusion.system.errors import UsageError
from tests.conftest import ROOT, run_python
from tests.helpers.damaged_bytes import bounded, png
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.raw_data import encoded, random_images
from tests.helpers.small import own_code

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by PNG colour type


def outcome(content, size, channels):
    try:
        return decode(content, (size, size), channels).size
    except BadImage as error:
        return str(error)


@pytest.mark.slow
@given(
    narrow=st.integers(1, 4),
    long=st.integers(1, 20_000),
    turned=st.booleans(),
    depth=st.sampled_from([8, 16]),
    kind=st.sampled_from(list(CHANNELS)),
    size=st.sampled_from([1, 32, 200]),
)
def test_any_shape_becomes_a_square_or_is_too_narrow(narrow, long, turned, depth, kind, size):
    width, height = (narrow, long) if turned else (long, narrow)
    row = 1 + width * CHANNELS[kind] * depth // 8
    content = png(width, height, depth=depth, kind=kind, data=zlib.compress(bytes(height * row)))
    scaled = round(max(width, height) * size / min(width, height)) * size if min(width, height) < size else 0
    wanted = "too narrow" if scaled > MAX_PIXELS else (size, size)
    if min(width, height) < 2 * size:
        assert bounded(lambda: outcome(content, size, 3)) == str(wanted)


def test_bombs_and_other_formats_of_pillow_are_refused_before_decoding():
    message = bounded(lambda: outcome(png(8193, 8193), 64, 3), megabytes=1024)
    assert message == "with more than 64 million pixels"
    assert outcome(encoded(Image.new("RGB", (8, 8)), "EPS"), 8, 3) == "not an image"


def test_jpeg_with_too_many_scans_is_refused():
    content = encoded(Image.new("L", (2048, 2048), 128), "JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xda") : -2]
    for scans in (10, MAX_SCANNED // 2048**2 + 1):
        more = content[:-2] + last * scans + content[-2:]
        wanted = "(64, 64)" if scans == 10 else "with too many scans"
        assert bounded(lambda more=more: outcome(more, 64, 1)) == wanted


LARGEST = """
import pathlib, sys
from tests.helpers.damaged_bytes import bounded
from tests.images.test_pictures import outcome
content = pathlib.Path(sys.argv[1]).read_bytes()
print(bounded(lambda: outcome(content, 64, 3), megabytes=1200, seconds=300))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "kind"), [(16, 0), (16, 6)])
def test_largest_image_needs_about_a_gigabyte(tmp_path, depth, kind):
    row = 1 + 8192 * CHANNELS[kind] * depth // 8
    (tmp_path / "x.png").write_bytes(
        png(8192, 8192, depth=depth, kind=kind, data=zlib.compress(bytes(8192 * row)))
    )
    # In a process of its own: freed memory of earlier tests would count.
    done = run_python(tmp_path, "-c", LARGEST, "x.png", env=own_code(ROOT))
    assert done.stdout.strip() == "(64, 64)", done.stderr


# Pictures for a model


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_picture_keeps_the_models_channels(tmp_path, channels):
    pixels = random_images(0, 1, 8, channels)[0]
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png", (8, 8), channels), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (8, 4)).save(tmp_path / "x.png", exif=exif)
    upright, other = ((4, 8), (8, 4)) if orientation < 5 else ((8, 4), (4, 8))
    assert read_picture(tmp_path / "x.png", upright, 1).shape == (*upright, 1)
    with pytest.raises(UsageError, match=f"{upright[0]}×{upright[1]} pixels"):
        read_picture(tmp_path / "x.png", other, 1)


def test_picture_of_other_size_is_refused_before_decoding(tmp_path):
    (tmp_path / "x.png").write_bytes(png(8000, 8000, data=zlib.compress(bytes(8000 * 24001))))
    message = bounded(lambda: read_picture(tmp_path / "x.png", (8, 8), 3), megabytes=128)
    assert "has 8000×8000 pixels: the model takes 8×8" in message


@pytest.mark.parametrize(
    "name", ["x\n", "-x", "x" * 255, "x" * 5000, "pipe", "/dev/zero", "/", ".", "", "²", "9" * 5000]
)
def test_any_input_name_is_an_image_or_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "9").write_bytes(b"text")
    spec = spec_of()
    store = np.zeros((2, *spec.pixel_shape), np.uint8)
    write_store(tmp_path / "store", store, None, {})
    message = bounded(lambda: load_input(name, tmp_path / "store", artefact_of(spec)))
    assert message.isprintable()
    assert "image" in message


# Values, layouts, grids and files


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    sizes = [draw(st.integers(1, most)) for most in (5, 9, 9, 4)]
    return draw(st_numpy.arrays(np.uint8, sizes))


def test_pixel_values_round_trip_and_are_rounded_and_clamped():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = to_model(pixels)
    assert values.dtype == torch.float32
    assert (float(values.min()), float(values.max())) == (-1, 1)
    assert torch.equal(to_uint8(values), pixels)
    assert torch.equal(to_uint8(values.double()), pixels)

    values = torch.tensor([-30.0, -1.004, -0.9965, 0.0, 0.0044, 1.0, 1.01, 30.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


@given(images())
def test_layouts_round_trip(pixels):
    tensor = to_nchw(pixels)
    assert tensor.shape == (len(pixels), pixels.shape[3], *pixels.shape[1:3])
    assert tensor.is_contiguous()
    back = to_nhwc(tensor)
    assert back.flags["C_CONTIGUOUS"]
    assert np.array_equal(back, pixels)
    assert np.array_equal(to_nhwc(to_uint8(to_model(tensor))), pixels)


@given(images(), st.integers(1, 6))
def test_grid_has_every_image_and_white_gaps(pixels, columns):
    picture = grid(pixels, columns)
    count, height, width, _ = pixels.shape
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        assert np.array_equal(picture[top : top + height, left : left + width], image)
    held = count * height * width
    assert (picture == 255).all(axis=2).sum() >= picture.shape[0] * picture.shape[1] - held


@pytest.mark.parametrize(("size", "factor"), [(28, 2), (64, 1), (256, 1)])
def test_small_images_are_enlarged_by_integer_factors(size, factor):
    picture = np.arange(size * size, dtype=np.uint8).reshape(size, size, 1)
    large = enlarge(picture, (size, size))
    assert large.shape == (size * factor, size * factor, 1)
    assert np.array_equal(large[::factor, ::factor], picture)


def test_gif_has_every_frame_and_holds_the_last():
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)]
    with Image.open(io.BytesIO(gif_bytes(frames, seconds=0.3, hold=1.0))) as opened:
        assert opened.n_frames == 3
        opened.seek(2)
        assert opened.info["duration"] == 1000
        assert abs(int(np.asarray(opened.convert("L"))[0, 0]) - 200) <= 1
