"""`show steps`, `reverse` and `samplers`: closed forms, samplers' paths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.show.reverse import reverse
from diffusion.show.sampler_paths import MIXTURE, sampler_paths, samplers
from diffusion.show.step_spacing import steps
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.trajectories import process_of

CONFIG = ProcessConfig(timesteps=50)
UNCONDITIONAL = {"num_classes": 0, "null_class": False}


@given(st.integers(1, 50))
def test_times_equal_those_of_the_samplers(count: int) -> None:
    shown = steps(CONFIG, count)
    process = build_process(CONFIG)
    of_any_model = {name for name, entry in SPACINGS.items() if not entry.has_levels}
    assert shown.spacings.keys() >= {name for name in of_any_model if not SPACINGS[name].is_paper_grid}
    assert ("ddim-uniform" in shown.spacings) == (count > 1 and 50 % count == 0)
    for name, spaced in shown.spacings.items():
        grid = sampling_grid(SampleSettings(spacing=name, steps=count), process)
        assert len(spaced.times) == count
        assert spaced.times == grid.times.tolist()
        at = grid.alphas_cumprod.numpy()
        assert spaced.log_snr == pytest.approx(np.log(at / (1 - at)), abs=1e-9)
        assert spaced.noise_level == pytest.approx(np.sqrt((1 - at) / at))
        assert spaced.largest_eta >= 1 or count == 1


def test_text_lists_every_time() -> None:
    assert "  " + " ".join(map(str, spaced_timesteps("quadratic", 7, 50))) in steps(CONFIG, 7).lines(100)


CPU, LONG = torch.device("cpu"), ProcessConfig(timesteps=200)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    spec = spec_of()
    return LoadedModel(network_of(spec), artefact_of(spec))


@pytest.mark.parametrize(("sampler", "eta", "noise"), [("ddim", 0, "small"), ("ddim", 1, "learned")])
def test_trajectory_equals_that_of_sample(loaded: LoadedModel, sampler: str, eta: float, noise: str) -> None:
    settings = SampleSettings(steps=12, eta=eta, noise=noise, sampler=sampler, seed=3)
    condition = mixed_condition(loaded.artefact, settings, [4])
    shown = reverse(loaded, settings, 4, condition, CPU)
    around = mixed_condition(loaded.artefact, settings, range(3, 6))
    batch = generate(loaded, settings, range(3, 6), around, CPU)
    assert np.abs(shown.image.astype(int) - to_nhwc(batch)[1]).max() <= 1  # but for rounding
    start = ImageNoise(3, [4], (1, 8, 8)).draw()
    assert np.array_equal(shown.x[0], to_nhwc(to_uint8(start))[0])
    walked = spaced_timesteps("uniform", 12, 100)[::-1]
    assert (shown.times[0], shown.times[-1], len(shown.times)) == (walked[0], walked[-1], 8)
    assert set(shown.times) <= set(walked)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_last_prediction_is_the_image(loaded: LoadedModel, sampler: str, steps: int) -> None:
    settings = SampleSettings(steps=steps, sampler=sampler)
    shown = reverse(loaded, settings, 0, mixed_condition(loaded.artefact, settings, [0]), CPU)
    assert np.array_equal(shown.x0_hat[-1], shown.image)
    assert len(shown.x) == len(shown.x0_hat) == len(shown.times) == min(steps, 8)


@pytest.mark.slow
def test_every_sampler_starts_from_the_same_noise() -> None:
    shown = samplers(LONG, 6, count=40)
    assert {name.split(",")[0] for name in shown.paths_by_sampler} == {*SAMPLERS} - {"consistency"}
    starts = [result.paths[0] for result in shown.paths_by_sampler.values()]
    assert all(np.array_equal(starts[0], start) for start in starts)
    for name, result in shown.paths_by_sampler.items():
        assert result.paths.shape == (7, 40, 2)
        assert result.nfe == SAMPLERS[name.split(",")[0]].nfe(6)
    for axes in shown.draw().axes:  # no drawn path leaves its square
        assert all(np.abs(line.get_xydata()).max() < axes.get_xlim()[1] for line in axes.lines)


@pytest.mark.slow
def test_deterministic_samplers_converge_to_the_exact_flow() -> None:
    few, many = samplers(LONG, 5, count=60), samplers(LONG, 80, count=60)
    for name in ("ddim, η = 0", "dpm-solver++"):
        assert many.off(many.paths_by_sampler[name]) < few.off(few.paths_by_sampler[name]) / 2
    assert np.array_equal(few.exact, many.exact)


@pytest.mark.slow
def test_exact_flow_ends_in_the_mixture() -> None:
    """Distances from a centre are Rayleigh: √(π/2) standard deviations on average."""
    shown = samplers(LONG, 2, count=400)
    assert shown.spread(shown.data) == pytest.approx((np.pi / 2) ** 0.5, rel=0.1)
    assert shown.spread(shown.exact) == pytest.approx(shown.spread(shown.data), rel=0.15)


def test_single_step_ends_at_the_posterior_mean() -> None:
    process, start = process_of("cosine", 200), torch.randn(5, 2, dtype=torch.float64)
    ends = sampler_paths(process, SampleSettings(steps=1, clip=False), start, torch.Generator()).ends
    alpha, sigma = process.alpha_sigma(torch.tensor(199))
    assert ends == pytest.approx(MIXTURE.x0(start, alpha, sigma).numpy(), abs=1e-9)
