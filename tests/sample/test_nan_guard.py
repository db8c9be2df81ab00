"""Non-finite values never reach an image or a cell: an error names the first step with such a value."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.model.model_file import LoadedModel, save_artefact
from diffusion.process.denoiser import Condition
from diffusion.protocol.grid import Cell
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import make_cell
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.ddim import Ddim
from diffusion.sample.generate import generate
from diffusion.sample.network_files import NetworkFiles
from diffusion.sample.sampler import NaNGuard, NonFiniteError, run_sampler
from tests.helpers.networks import loaded_model
from tests.helpers.trajectories import grid_of, network_denoiser

CPU = torch.device("cpu")
INTACT = loaded_model(process={"timesteps": 20})
MESSAGE = r"is NaN or infinite from step \d+ on \(t = \d+\): "


@st.composite
def damaged_models(draw: st.DrawFn) -> LoadedModel:
    """Draw the intact model with one non-finite entry in one of its tensors."""
    network = copy.deepcopy(INTACT.network)
    tensor = draw(st.sampled_from(list(network.state_dict().values())))
    index = draw(st.integers(0, tensor.numel() - 1))
    tensor.view(-1)[index] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return LoadedModel(network, INTACT.artefact)


@st.composite
def chosen_settings(draw: st.DrawFn) -> SampleSettings:
    sampler, steps = draw(st.sampled_from(sorted(SAMPLERS))), draw(st.integers(1, 4))
    return SampleSettings(
        sampler=sampler,
        steps=steps,
        eta=draw(st.sampled_from([0.0, 0.5, 1.0])) if SAMPLERS[sampler].uses_eta and steps > 1 else 0.0,
        noise=draw(st.sampled_from(["small", "large", "learned"])),
        guidance=draw(st.sampled_from([0.0, 0.5, 100.0])),
        clip=draw(st.booleans()),
    )


def images(model: LoadedModel, chosen: SampleSettings) -> torch.Tensor:
    return generate(model, chosen, range(2), mixed_condition(model.artefact, chosen, range(2)), CPU)


@pytest.mark.slow
@given(damaged_models(), chosen_settings())
def test_nonfinite_weights_raise_an_error_or_have_no_effect(model, chosen) -> None:
    """An unused entry, such as the embedding of another label, leaves the intact model's image."""
    refusal = rf"image [01] {MESSAGE}so are weights of the model \(\S+\), so use another"
    try:
        made, message = images(model, chosen), ""
    except NonFiniteError as error:
        made, message = torch.empty(0), str(error)
    assert re.match(refusal, message) if message else torch.equal(made, images(INTACT, chosen))


def test_error_distinguishes_overflow_from_nonfinite_weights() -> None:
    huge = copy.deepcopy(INTACT.network)
    with torch.no_grad():
        for weight in huge.parameters():
            weight.mul_(1e30)
    model = LoadedModel(huge, INTACT.artefact)
    with pytest.raises(NonFiniteError, match=r"weights are finite, .*: train with a lower train\.lr"):
        images(model, SampleSettings(steps=2))
    with pytest.raises(NonFiniteError, match=r"weights are finite, .*: lower the guidance"):
        images(model, SampleSettings(steps=2, guidance=1.0))


@given(st.integers(0, 5), st.integers(0, 2), st.sampled_from([math.nan, math.inf]), st.booleans())
def test_error_contains_the_first_step_and_the_row(bad, row, value, at_the_end) -> None:
    """This also holds if the check runs only at the end, as on a GPU."""
    grid = grid_of("linear", 6)

    def network(x, t, labels):
        output = torch.zeros_like(x)
        if int(t[0]) <= 5 - bad:  # from step bad + 1 on
            output[row, 0, 0, 0] = value
        return output

    guard, x = NaNGuard(), torch.zeros(3, 1, 2, 2)
    check, guard.raise_pending = guard.raise_pending, (lambda: None) if at_the_end else guard.raise_pending

    def run():
        run_sampler(Ddim()(grid, x, lambda: x), network_denoiser(network, grid), Condition(3), guard=guard)
        check()

    with pytest.raises(NonFiniteError, match=rf"^row {row} is NaN .* step {bad + 1} on \(t = {5 - bad}\)"):
        run()


def test_sweep_writes_no_cell_for_infinite_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network, path = copy.deepcopy(INTACT.network), tmp_path / "bad.safetensors"
    next(network.parameters()).data.fill_(math.inf)
    save_artefact(path, network.state_dict(), INTACT.artefact)
    sample, cell = SampleConfig(num_images=4, batch_size=2), Cell(steps=2, eta=0.0)
    with pytest.raises(NonFiniteError, match=MESSAGE):
        make_cell(sample, cell, NetworkFiles(path), tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    assert not list(tmp_path.rglob("*.npy"))
