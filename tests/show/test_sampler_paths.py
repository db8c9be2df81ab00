"""`show samplers`: trajectories share their noise, end in the mixture, and converge with steps."""

import numpy as np
import pytest
import torch

from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.show.sampler_paths import MIXTURE, sampler_paths, samplers
from tests.helpers.trajectories import process_of

CONFIG = ProcessConfig(timesteps=200)


def test_every_sampler_starts_from_the_same_noise() -> None:
    shown = samplers(CONFIG, 6, count=40)
    assert {name.split(",")[0] for name in shown.paths_by_sampler} == set(SAMPLERS)
    starts = [walks.paths[0] for walks in shown.paths_by_sampler.values()]
    assert all(np.array_equal(starts[0], start) for start in starts)
    for name, walks in shown.paths_by_sampler.items():
        assert walks.paths.shape == (7, 40, 2)
        assert walks.nfe == SAMPLERS[name.split(",")[0]].nfe(6)


def test_deterministic_samplers_converge_to_the_exact_flow() -> None:
    few, many = samplers(CONFIG, 5, count=60), samplers(CONFIG, 80, count=60)
    for name in ("ddim, η = 0", "dpm-solver++"):
        assert many.off(many.paths_by_sampler[name]) < few.off(few.paths_by_sampler[name]) / 2
    assert np.array_equal(few.exact, many.exact)


def test_exact_flow_ends_in_the_mixture() -> None:
    """Distances from a centre are Rayleigh: √(π/2) standard deviations on average."""
    shown = samplers(CONFIG, 2, count=400)
    assert shown.spread(shown.data) == pytest.approx((np.pi / 2) ** 0.5, rel=0.1)
    assert shown.spread(shown.exact) == pytest.approx(shown.spread(shown.data), rel=0.15)


def test_single_step_ends_at_the_posterior_mean() -> None:
    process, start = process_of("cosine", 200), torch.randn(5, 2, dtype=torch.float64)
    ends = sampler_paths(process, SampleSettings(steps=1, clip=False), start, torch.Generator()).ends
    alpha, sigma = process.alpha_sigma(torch.tensor(199))
    assert ends == pytest.approx(MIXTURE.x0(start, alpha, sigma).numpy(), abs=1e-9)
