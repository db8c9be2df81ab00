"""Every figure as SVG, PNG, text and JSON: reproducible, complete, and narrow enough."""

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import as_png, svg_file
from diffusion.report.theme import DARK, LIGHT
from diffusion.show import forward, network_table, reverse, sampler_paths, step_spacing, variance
from diffusion.show.figure import FigureData, columns, format_quantity
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU, PROCESS = torch.device("cpu"), ProcessConfig(timesteps=100)
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)


def loaded() -> LoadedModel:
    spec = spec_of(num_classes=0, null_class=False)
    return LoadedModel(network_of(spec), artefact_of(spec))


def learned() -> FigureData:
    images, grid = IMAGE[None].repeat(2, axis=0), variance.make_grid(PROCESS, 10, "uniform")
    return variance.learned_variance(loaded(), grid, images, Condition(2))


FIGURES: dict[str, Callable[[], FigureData]] = {
    "forward": lambda: forward.forward(PROCESS, IMAGE),
    "forward without images": lambda: forward.forward(PROCESS),
    "steps": lambda: step_spacing.steps(PROCESS, 10),
    "steps of one": lambda: step_spacing.steps(PROCESS, 1),
    "variance": learned,
    "bounds": lambda: variance.variance_bounds(variance.make_grid(PROCESS, None, "uniform")),
    "bounds of one": lambda: variance.variance_bounds(variance.make_grid(PROCESS, 1, "uniform")),
    "reverse": lambda: reverse.reverse(loaded(), SampleSettings(steps=10), 0, Condition(1), CPU),
    "model": lambda: network_table.model(spec_of()),
    "samplers": lambda: sampler_paths.samplers(PROCESS, 5, count=30),
}


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_reproducible_and_follow_the_colour_scheme_and_text_fits(name: str) -> None:
    first, second = FIGURES[name](), FIGURES[name]()
    data, pixels = svg_file(first.draw(), first.title), as_png(first.draw())
    assert data == svg_file(second.draw(), second.title)
    assert pixels == as_png(second.draw())
    root = ET.fromstring(data)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == first.title
    text = data.decode()
    style = text[text.index("<style>") : text.index("</style>")]
    assert all(colour in style for colour in [*LIGHT.values(), *DARK.values()])
    drawing = text.replace(style, "")
    assert not any(colour in drawing for colour in LIGHT.values())
    assert len(data) < 200_000
    with Image.open(io.BytesIO(pixels)) as image:
        assert image.width > 1000
        assert len(image.convert("L").getcolors()) > 2
    lines = first.lines(72)
    assert any(lines)
    assert max(map(cell_len, lines)) <= 72
    assert all(line == line.rstrip() and "\n" not in line for line in lines)
    json.dumps(first.values(), allow_nan=False)


@given(st.integers(0, 10**17))
def test_quantity_is_exact_within_half_a_percent(amount: int) -> None:
    value, _, letter = format_quantity(amount).partition(" ")
    assert len(value.replace(".", "").lstrip("0")) <= 3
    read = float(value) * 1000 ** (" kMGTP".index(letter) if letter else 0)
    assert abs(read - amount) <= 0.005 * amount


def test_columns_are_aligned_by_visible_width() -> None:
    assert columns([["a", "n"], ["x̂_0", "12"], ["word", "3"]], 1) == ["a      n", "x̂_0   12", "word   3"]
