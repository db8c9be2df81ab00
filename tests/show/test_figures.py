"""Every figure of `diffctl show` as SVG, PNG, text and JSON; `show model` by closed forms."""

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len
from torch import nn

from cli.images.image_commands import NOTEBOOKS
from diffusion.layout import MODEL
from diffusion.model.blocks import Attention
from diffusion.model.model_file import LoadedModel
from diffusion.model.presets import PRESETS
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.process.denoiser import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import as_png, svg_file
from diffusion.report.theme import DARK, LIGHT
from diffusion.show import network_table, reverse, sampler_paths, step_spacing
from diffusion.show.figure import FigureData, columns, format_quantity
from diffusion.show.network_table import model
from tests.conftest import ROOT
from tests.helpers.invoke import assert_refused
from tests.helpers.networks import artefact_of, network_of, small_model, spec_of

CPU, PROCESS = torch.device("cpu"), ProcessConfig(timesteps=100)


def loaded() -> LoadedModel:
    spec = spec_of(num_classes=0, null_class=False)
    return LoadedModel(network_of(spec), artefact_of(spec))


FIGURES: dict[str, Callable[[], FigureData]] = {
    "steps": lambda: step_spacing.steps(PROCESS, 10),
    "steps of one": lambda: step_spacing.steps(PROCESS, 1),
    "reverse": lambda: reverse.reverse(loaded(), SampleSettings(steps=10), 0, Condition(1), CPU),
    "model": lambda: network_table.model(spec_of()),
    "samplers": lambda: sampler_paths.samplers(PROCESS, 5, count=30),
}


@pytest.mark.slow
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


SHAPES: list[dict[str, Any]] = [
    {},
    {"block": "convnext"},
    {"resample": "plain", "heads": 2, "head_channels": None},
    {"channel_mult": (1, 2, 3), "num_res_blocks": 2, "attention_resolutions": (2, 4)},
    {"num_classes": 0, "null_class": False},
    {"patch_size": 2, "pixel_channels": 4, "image_size": 16},
    {"gradient_checkpointing": True, "in_channels": 3, "out_channels": 3},
    {"augmented": True},
]


def closed_form(spec: UNetSpec) -> int:
    """2·k²·C_in·C_out per pixel of a convolution, 2·in·out of a linear layer, 4·N²·C of attention."""
    found = []

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            side = layer.kernel_size[0] * layer.kernel_size[1]
            found.append(2 * side * layer.in_channels // layer.groups * made[0].numel())
        elif isinstance(layer, nn.Linear):
            found.append(2 * layer.in_features * made[0].numel())
        elif isinstance(layer, Attention):
            channels, *size = made[0].shape
            found.append(4 * (size[0] * size[1]) ** 2 * channels)

    with torch.device("meta"):
        network = UNet(spec).eval()
        for layer in network.modules():
            layer.register_forward_hook(note)
        t = torch.zeros(1, dtype=torch.int64)
        x = torch.zeros(1, *spec.shape)
        network(x, t, t if spec.num_classes else None)
    return sum(found)


@pytest.mark.slow
@pytest.mark.parametrize("changes", SHAPES, ids=lambda changes: ",".join(changes) or "usual")
def test_totals_equal_the_network(changes: dict[str, Any]) -> None:
    spec = spec_of(**changes)
    shown = model(spec)
    assert shown.parameters == sum(parameter.numel() for parameter in UNet(spec).parameters())
    assert shown.flops == closed_form(spec)


@pytest.mark.slow
def test_published_network_is_counted_without_memory() -> None:
    preset = PRESETS["adm-64"]
    shape = UNetSpec(**preset.model, image_size=64, in_channels=3, out_channels=6, num_classes=1000)
    shown = model(shape)
    assert shown.parameters == preset.parameters
    assert shown.flops == closed_form(shape)


def test_parts_are_in_forward_order_with_their_shapes() -> None:
    shown = model(spec_of())
    assert [part.name for part in shown.parts] == [
        *("time", "classes", "stem", "encoder", "encoder", "middle", "decoder", "decoder", "norm", "head")
    ]
    assert shown.parts[2].shape == (8, 8, 8)
    assert shown.parts[5].shape == (16, 4, 4)
    assert shown.parts[5].blocks == {"ResBlock": 2, "Attention": 1}
    assert shown.parts[-1].shape == (2, 8, 8)


@pytest.fixture
def folder(project: Path, digits_store: Path) -> Path:
    """A project with prepared digits and a model of random weights."""
    (project / "data/prepared").mkdir(parents=True)
    shutil.move(digits_store, project / "data/prepared/test")
    small_model(MODEL)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("line", ["steps", "reverse --steps 3 --index 2", "model", "samplers --steps 3"])
def test_figure_as_text_json_and_files(folder, invoke, line) -> None:
    command = ("show", *line.split())
    assert len(invoke(*command).out.splitlines()) > 5
    assert json.loads(invoke(*command, "--json").out)
    for suffix in ("png", "svg"):
        assert invoke(*command, "--out", f"figure.{suffix}").out.endswith(f": figure.{suffix}\n")
    assert (folder / "figure.svg").read_text().startswith("<svg")
    with Image.open(folder / "figure.png") as picture:
        picture.load()


@pytest.mark.slow
def test_params_profile_and_model_give_different_figures(folder, invoke) -> None:
    short = yaml.safe_load((folder / "params.yaml").read_text())
    short["process"]["timesteps"] = 77
    (folder / "short.yaml").write_text(yaml.safe_dump(short))

    def values(*arguments: str) -> dict:
        return json.loads(invoke("show", *arguments, "--json").out)

    assert values("steps")["last"] == 999
    assert values("steps", "--profile", "short.yaml")["last"] == 76
    assert values("steps", "--model", str(MODEL))["last"] == 99
    parameters = values("model", "--model", str(MODEL))["parameters"]
    assert parameters == sum(p.numel() for p in network_of(spec_of()).parameters())
    assert values("model", "--profile", "cifar10")["parameters"] > 100 * parameters


def test_misuse_is_one_sentence(folder, invoke) -> None:
    assert_refused(invoke("show", "steps", "--profile", "digits", "--champion"), "--profile")
    assert_refused(invoke("show", "steps", "--steps", "2000"), "1 to 1000")
    for name in NOTEBOOKS:
        done = invoke("show", name, "--image", "7", "extra")
        (notebook,) = re.findall(r"docs/notebooks/\w+\.ipynb", done.err)
        assert_refused(done, f"`diffctl show {name}` was removed")
        assert (ROOT / notebook).is_file()
