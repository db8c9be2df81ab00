"""DPM-Solver++(2M): convergence order on Gaussian data with an exact solution, and the paper's formula."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.sampler import Step
from tests.helpers import papers
from tests.helpers.trajectories import eps_network, grid_of, randn, sample

DATA = papers.GaussianData(0.3, 0.4)


def fine_grid(steps: int) -> TimeGrid:
    """Return the continuous linear process (β from 0.1 to 20) at evenly spaced times from 1e-2 to 1."""
    u = torch.linspace(1e-2, 1, steps, dtype=torch.float64)
    alphas_cumprod = torch.exp(-(0.1 * u + (20 - 0.1) / 2 * u**2))
    return TimeGrid(torch.arange(steps), alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())


def last_error(steps: int) -> float:
    """Return the maximum error against the exact flow at the last timestep before ᾱ = 1."""
    grid = fine_grid(steps)
    x_t = randn(1, 1, 8, 8)
    recorded: list[Step] = []
    options = {"sampler": "dpm-solver++", "clip": False, "callback": recorded.append}
    sample(eps_network(grid, DATA.eps), grid, lambda: x_t, **options)
    start, end = float(grid.alphas_cumprod[-1]), float(grid.alphas_cumprod[0])
    return float((recorded[-2].x - DATA.flow(x_t, start, end)).abs().max())


def test_convergence_order_is_2():
    counts = [320, 640, 1280]  # with fewer steps, the extrapolation of the last steps is reduced
    errors = [last_error(count) for count in counts]
    assert 1.85 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < 2.6


@given(
    st.sampled_from(["linear", "cosine"]),
    st.sampled_from(["uniform", "quadratic", "trailing"]),
    st.integers(2, 200),
    st.booleans(),
    st.data(),
)
def test_steps_match_paper_formula(name, spacing, timesteps, clip, data):
    """Steps after the first are of order 2. Much longer steps extrapolate less."""
    steps = data.draw(st.integers(1, timesteps))
    grid = grid_of(name, timesteps, spaced_timesteps(spacing, steps, timesteps))
    x = randn(1, 1, 3, 3).numpy()
    alphas_cumprod = grid.alphas_cumprod.numpy()
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    earlier: list[tuple[float, np.ndarray]] = []
    for i in reversed(range(steps)):
        x_0 = (x - sigma[i] * DATA.eps(x, alphas_cumprod[i])) / alpha[i]
        x_0 = np.clip(x_0, -1, 1) if clip else x_0
        lambda_s = math.log(alpha[i] / sigma[i])
        if i == 0:
            x = x_0
            break
        lambda_t = math.log(alpha[i - 1] / sigma[i - 1])
        h, d = lambda_t - lambda_s, x_0
        if earlier:
            lambda_r, x_0_r = earlier[-1]
            r = (lambda_s - lambda_r) / h
            d = x_0 + (x_0 - x_0_r) * min(1 / (2 * r), 1 / 4 + r / 2)
        x = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * (math.exp(-h) - 1) * d
        earlier.append((lambda_s, x_0))
    start = randn(1, 1, 3, 3)
    found = sample(eps_network(grid, DATA.eps), grid, lambda: start, sampler="dpm-solver++", clip=clip)
    assert np.allclose(found, x, rtol=1e-6, atol=1e-6)
