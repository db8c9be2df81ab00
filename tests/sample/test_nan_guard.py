"""NaN and infinity never become a picture, a code or a likelihood: the first step with them is named."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from diffusion.model.model_file import LoadedModel, save_artefact
from diffusion.process.condition import Condition
from diffusion.protocol.grid import Cell
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import make_cell
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.ddim import Ddim
from diffusion.sample.generate import generate
from diffusion.sample.nan_guard import NaNGuard, NonFiniteError
from diffusion.sample.sampler import run_sampler
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.trajectories import grid_of, network_denoiser

CPU = torch.device("cpu")
SPEC = spec_of()
SOUND = LoadedModel(network_of(SPEC), artefact_of(SPEC, 20))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
TOLD = r"is NaN or infinite from step \d+ on \(t = \d+\): "


@st.composite
def spoilt_models(draw: st.DrawFn) -> LoadedModel:
    """The sound model with an entry of one of its tensors that is no number."""
    network = copy.deepcopy(SOUND.network)
    tensor = draw(st.sampled_from(list(network.state_dict().values())))
    index = draw(st.integers(0, tensor.numel() - 1))
    tensor.view(-1)[index] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return LoadedModel(network, SOUND.artefact)


@st.composite
def chosen_settings(draw: st.DrawFn) -> SampleSettings:
    sampler, steps = draw(st.sampled_from(sorted(SAMPLERS))), draw(st.integers(1, 4))
    return SampleSettings(
        sampler=sampler,
        steps=steps,
        eta=draw(st.sampled_from([0.0, 0.5, 1.0])) if SAMPLERS[sampler].stochastic and steps > 1 else 0.0,
        noise=draw(st.sampled_from(["small", "large", "learned"])),
        guidance=draw(st.sampled_from([0.0, 0.5, 100.0])),
        clip=draw(st.booleans()),
    )


def conditioned(model: LoadedModel, wanted: SampleSettings, count: int) -> Condition:
    return mixed_condition(model.artefact, wanted, range(count))


def images(model: LoadedModel, wanted: SampleSettings) -> torch.Tensor:
    return generate(model, wanted, range(2), conditioned(model, wanted, 2), CPU)


def outcome(work: Callable[[], Any]) -> tuple[Any, str]:
    """What the work gives, or the sentence with which it is refused."""
    try:
        return work(), ""
    except (NonFiniteError, UsageError) as error:
        return None, str(error)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(spoilt_models(), chosen_settings())
def test_weights_that_are_no_numbers_make_no_picture(model: LoadedModel, wanted: SampleSettings) -> None:
    """An entry that has no say, such as a label's that is not asked for, leaves the sound model's picture."""
    made, told = outcome(lambda: images(model, wanted))
    if told:
        assert re.match(rf"image [01] {TOLD}so are weights of the model \(\S+\), so use another", told)
    else:
        assert torch.equal(made, images(SOUND, wanted))


def test_finite_weights_that_overflow_are_told_from_others() -> None:
    huge = copy.deepcopy(SOUND.network)
    with torch.no_grad():
        for weight in huge.parameters():
            weight.mul_(1e30)
    model = LoadedModel(huge, SOUND.artefact)
    with pytest.raises(NonFiniteError, match=r"weights are finite, .*: train with a lower train\.lr"):
        images(model, SampleSettings(steps=2))
    with pytest.raises(NonFiniteError, match=r"weights are finite, .*: lower the guidance"):
        images(model, SampleSettings(steps=2, guidance=1.0))


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 2), st.sampled_from([math.nan, math.inf]), st.booleans())
def test_the_first_step_and_the_row_are_named(bad: int, row: int, value: float, at_the_end: bool) -> None:
    """Also where nobody looks before the end, as on a GPU."""
    grid = grid_of("linear", 6)

    def network(x, t, labels):
        said = torch.zeros_like(x)
        if int(t[0]) <= 5 - bad:  # from step bad + 1 on
            said[row, 0, 0, 0] = value
        return said

    watch, x = NaNGuard(), torch.zeros(3, 1, 2, 2)
    look, watch.raise_pending = watch.raise_pending, (lambda: None) if at_the_end else watch.raise_pending

    def walked():
        run_sampler(Ddim()(grid, x, lambda: x), network_denoiser(network, grid), Condition(3), guard=watch)
        look()

    with pytest.raises(NonFiniteError, match=rf"^row {row} is NaN .* step {bad + 1} on \(t = {5 - bad}\)"):
        walked()


def test_nan_weights_end_the_sample_command_without_a_file(tmp_path) -> None:
    network, out = copy.deepcopy(SOUND.network), tmp_path / "made.png"
    next(network.parameters()).data.fill_(math.nan)
    save_artefact(tmp_path / "bad.safetensors", network.state_dict(), SOUND.artefact)
    options = ["--model", str(tmp_path / "bad.safetensors"), "--steps", "2", "--out", str(out)]
    made = CliRunner().invoke(app, ["sample", *options])
    assert isinstance(made.exception, NonFiniteError)
    assert not out.exists()


def test_nor_does_a_sweep_leave_a_cell(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = copy.deepcopy(SOUND.network)
    next(network.parameters()).data.fill_(math.inf)
    save_artefact(tmp_path / "bad.safetensors", network.state_dict(), SOUND.artefact)
    sample = SampleConfig(num_images=4, batch_size=2)
    with pytest.raises(NonFiniteError, match=TOLD):
        make_cell(sample, Cell(2, 0.0), tmp_path / "bad.safetensors", tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    assert not list(tmp_path.rglob("*.npy"))
