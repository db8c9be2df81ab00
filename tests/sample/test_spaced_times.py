"""Spacings over real time: their formulas, ends and order on every process, and what does not fit."""

import itertools

import numpy as np
import pytest
import torch

from diffusion.config import parse
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import cell_settings, grid, settings_card
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.sampling_steps import spaced_times
from diffusion.system.errors import UsageError
from tests.conftest import params
from tests.helpers.trajectories import process_of, step_counts

FLOW = build_process(ProcessConfig(schedule="flow", prediction="flow", shift=1.0))  # α is 0 at the last time
REAL = [name for name, entry in SPACINGS.items() if entry.real and not entry.has_levels]
IN_NOISE = [name for name, entry in SPACINGS.items() if entry.in_noise and not entry.has_levels]


@pytest.mark.hypothesis
@pytest.mark.parametrize("spacing", REAL)
@pytest.mark.parametrize("process", [process_of("linear", 1000), process_of("cosine", 1000), FLOW])
def test_any_number_of_steps_has_as_many_distinct_times_to_the_last(process, spacing):
    for steps in step_counts():
        times = spaced_times(SampleSettings(spacing=spacing, steps=steps), process)
        assert len(times) == steps
        assert all(a < b for a, b in itertools.pairwise(times))
        assert times[0] >= process.t_min
        if spacing in IN_NOISE and process is FLOW:
            level = process.noise_level(torch.tensor(times[-1], dtype=torch.float64))
            assert float(level) == pytest.approx(process.sigma_max, rel=1e-12)
        else:
            assert times[-1] == process.t_max, "DDIM from T−1 begins where the process ends"
        if process is not FLOW and spacing in IN_NOISE and steps > 1:
            assert times[0] == pytest.approx(process.t_min, abs=1e-9)
        if process is not FLOW and SPACINGS[spacing].whole:
            assert times == spaced_timesteps(spacing, steps, 1000)


@pytest.mark.parametrize("steps", [2, 18])
@pytest.mark.parametrize("process", [process_of("linear", 1000), FLOW])
def test_noise_levels_match_the_formulas(process, steps):
    """EDM eq. 5 and even logarithms, between levels of one's own."""
    low, high = 0.02, 50.0
    i = np.arange(steps) / (steps - 1)
    wanted = {
        "karras": (high ** (1 / 5) + i * (low ** (1 / 5) - high ** (1 / 5))) ** 5,
        "log-snr": np.exp(np.log(high) + i * (np.log(low) - np.log(high))),
    }
    for spacing, levels in wanted.items():
        options = {"sigma_min": low, "sigma_max": high, **({"rho": 5} if spacing == "karras" else {})}
        chosen = SampleSettings(spacing=spacing, steps=steps, spacing_options=options)
        times = torch.tensor(spaced_times(chosen, process), dtype=torch.float64)
        assert process.noise_level(times).numpy()[::-1] == pytest.approx(levels, rel=1e-11)


def test_times_are_even_in_their_sense():
    times = {name: np.array(spaced_times(SampleSettings(spacing=name, steps=5), FLOW)) for name in REAL}
    even = np.linspace(0, 1, 5)
    shares = {name: (found - FLOW.t_min) / (FLOW.t_max - FLOW.t_min) for name, found in times.items()}
    assert shares["uniform"] == pytest.approx(even)
    assert np.sqrt(shares["quadratic"]) == pytest.approx(even)
    assert shares["trailing"] == pytest.approx(np.arange(1, 6) / 5)


def test_the_first_time_is_exactly_that_of_the_process():
    times = spaced_times(SampleSettings(spacing="log-snr", steps=5), process_of("linear", 15))
    assert (times[0], times[-1]) == (0.0, 14.0), "the inverse of its noise level is 3e-16"


@pytest.mark.parametrize("spacing", ["ddim-uniform", "ddim-quadratic", "adm-stride"])
def test_grids_of_papers_are_for_discrete_processes_only(spacing):
    with pytest.raises(UsageError, match=f"{spacing} needs a discrete process: use one of uniform"):
        spaced_times(SampleSettings(spacing=spacing, steps=10), FLOW)
    with pytest.raises(UsageError, match="a list of timesteps needs a discrete process"):
        spaced_times(SampleSettings(timesteps=(0, 5)), FLOW)


@pytest.mark.parametrize("options", [{"sigma_max": 200}, {"sigma_min": 0.001}, {"sigma_min": 160}])
def test_noise_levels_beyond_the_process_are_refused(options):
    process = process_of("linear", 1000)
    lowest, highest = process.sigma_min, process.sigma_max
    message = f"do not fit .* linear: its noise levels are {lowest:g} to {highest:g}"
    with pytest.raises(UsageError, match=message):
        spaced_times(SampleSettings(spacing="karras", spacing_options=options), process)


@pytest.mark.parametrize(
    ("spacing", "options", "message"),
    [
        ("uniform", {"rho": 7}, "spacing_options of uniform: rho: unknown key, there are none"),
        ("log-snr", {"rho": 7}, "spacing_options of log-snr: rho: unknown key, allowed are sigma_min, "),
        ("karras", {"rho": 0}, r"spacing_options of karras: rho: .* \(got 0\)"),
        ("karras", {"sigma_min": 5, "sigma_max": 1}, r"sigma_min must be below sigma_max \(got 5 and 1\)"),
    ],
)
def test_invalid_options_are_refused(spacing, options, message):
    with pytest.raises(UsageError, match=message):
        parse(params(sample={"spacing": spacing, "spacing_options": options}), "params.yaml")


def test_options_belong_to_their_spacing_and_are_in_the_card():
    sample = {"spacing": "karras", "spacing_options": {"rho": 5}}
    sweep = {"steps": [5, 2000], "eta": [0.0], "spacing": ["karras", "log-snr"]}
    config = parse(params(sample=sample, sweep=sweep), "params.yaml")
    settings = [cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep)]
    assert [one.spacing_options for one in settings] == [{"rho": 5}, {}] * 2
    card = settings_card(settings[0])
    assert card["spacing_options"] == '{"rho":5.0,"sigma_max":null,"sigma_min":null}'
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert settings_card(SampleSettings(**known)) == card
    assert "spacing_options" not in settings_card(SampleSettings())


def test_only_whole_times_limit_the_steps():
    with pytest.raises(UsageError, match="2000 sampling steps do not fit: give 1 to"):
        parse(params(sweep={"steps": [2000], "spacing": ["log-snr", "uniform"]}), "params.yaml")
    parse(params(sweep={"steps": [2000], "spacing": ["karras"]}), "params.yaml")
