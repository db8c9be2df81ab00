"""The rule has order 2 on Gaussian data."""

import torch

from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import Step, build_sampler, run_sampler


def error(steps: int, weight: float = 0.5) -> float:
    """Return the distance to the exact solution at the last time before the image."""
    sigma = torch.linspace(0.1, 10, steps, dtype=torch.float64)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    seen: list[Step] = []

    def denoiser(x: torch.Tensor, t: torch.Tensor | float, condition: Condition) -> Prediction:
        level = sigma[int(t)]
        return Prediction(x / (1 + level**2), level * x / (1 + level**2))

    sampler = build_sampler(
        SampleSettings(sampler="trapezoid", sampler_options={"weight": weight}, clip=False)
    )
    trajectory = sampler(TimeGrid(torch.arange(steps), torch.ones(steps), sigma), x, lambda: x)
    result = run_sampler(trajectory, denoiser, Condition(1), seen.append)
    assert result.nfe == SAMPLERS["trapezoid"].nfe(steps)
    return float((seen[-2].x - ((1 + 0.1**2) / (1 + 10**2)) ** 0.5).abs())


def test_error_falls_with_the_square_of_the_steps() -> None:
    assert error(320) > 3.5 * error(640)
    assert 1.5 < error(320, weight=0) / error(640, weight=0) < 2.5, "Euler's method"
