"""The reverse step against iDDPM, DDIM and DPM-Solver++; draws of noise; the largest η."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.ddim import Ddim
from diffusion.sample.dpm_solver import DPMSolverMultistep
from diffusion.sample.sampler import Step
from diffusion.sample.sampling_steps import max_eta
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.trajectories import Draws, OnGrid, grid_of, randn, sample

NAMES = st.sampled_from(["linear", "cosine"])
SPACINGS = st.sampled_from(["uniform", "quadratic", "trailing"])
IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))  # channels, height, width


@st.composite
def grids(draw: st.DrawFn, smallest: int = 1) -> TimeGrid:
    timesteps = draw(st.integers(2, 300))
    steps = draw(st.integers(min(smallest, timesteps), timesteps))
    return grid_of(draw(NAMES), timesteps, spaced_timesteps(draw(SPACINGS), steps, timesteps))


@st.composite
def noisy_grids(draw: st.DrawFn) -> tuple[TimeGrid, float]:
    """Draw a grid of at least two steps and a valid η, above and below 1 equally often."""
    grid = draw(grids(2))
    return grid, draw(st.floats(0, 1) | st.floats(1, max_eta(grid)))


def reverse_step(grid: TimeGrid, i: int, x, eps, v, *, z=None, **options):
    """Return (x_prev, x̂_0) of a step of Ddim(**options) from index i, for network outputs ε and v."""
    prediction = OnGrid(grid).read(eps if v is None else torch.cat([eps, v], 1), x, grid.times[i])
    return Ddim(**options).step(grid.reverse_steps()[len(grid) - 1 - i], x, prediction, z)


@given(noisy_grids(), IMAGES, st.data())
def test_one_step_is_ddim_eq_12(grid_and_eta, image, data):
    grid, eta = grid_and_eta
    i = data.draw(st.integers(0, len(grid) - 1))
    x, eps, z = randn(3, 2, *image)
    a, b = float(grid.alphas_cumprod[i]), float(grid.alpha_prev[i]) ** 2
    sigma = papers.ddim_sigma(a, b, eta)
    mean = papers.ddim_step(x.numpy(), eps.numpy(), a, b, sigma)
    without, _ = reverse_step(grid, i, x, eps, None, eta=eta, clip=False)
    tolerance = 1e-7 / math.sqrt(a)
    assert np.allclose(without, mean, rtol=1e-6, atol=tolerance)
    for noise, s in (("small", sigma), ("large", eta * papers.ddim_sigma_hat(a, b))):
        noisy, _ = reverse_step(grid, i, x, eps, None, eta=eta, noise=noise, clip=False, z=z)
        assert np.allclose(noisy, mean + s * z.numpy(), rtol=1e-6, atol=tolerance)


@given(noisy_grids(), IMAGES, st.data())
def test_learned_noise_along_a_spacing_interpolates_between_the_spaced_variances(grid_and_eta, image, data):
    grid, eta = grid_and_eta
    i = data.draw(st.integers(1, len(grid) - 1))
    x, eps, z, v = randn(4, 2, *image)
    without, _ = reverse_step(grid, i, x, eps, v, eta=eta, clip=False)
    noisy, _ = reverse_step(grid, i, x, eps, v, eta=eta, noise="learned", clip=False, z=z)
    beta, beta_tilde = float(grid.betas[i]), float(grid.posterior_variance[i])
    expected = eta * np.sqrt(papers.iddpm_variance(v.numpy(), beta, beta_tilde)) * z.numpy()
    assert np.allclose(noisy - without, expected, rtol=1e-5, atol=1e-9 + 1e-12 * float(without.abs().max()))


@given(noisy_grids(), IMAGES, st.data())
def test_clipping_recomputes_eps_from_the_clipped_x0(grid_and_eta, image, data):
    grid, eta = grid_and_eta
    i = data.draw(st.integers(0, len(grid) - 1))
    x, eps = randn(2, 2, *image)
    a, b = float(grid.alphas_cumprod[i]), float(grid.alpha_prev[i]) ** 2
    x0_hat = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -1, 1)
    again = (x - math.sqrt(a) * x0_hat) / math.sqrt(1 - a)
    sigma = papers.ddim_sigma(a, b, eta)
    expected = math.sqrt(b) * x0_hat + math.sqrt(max(0, 1 - b - sigma**2)) * again
    found, found_x0 = reverse_step(grid, i, x, eps, None, eta=eta, clip=True)
    assert np.allclose(found_x0, x0_hat, atol=1e-9)
    assert np.allclose(found, expected, atol=1e-7)


@settings(max_examples=20)
@given(grids(), st.sampled_from([0.0, 0.5, 1.0]))
def test_noise_is_drawn_once_for_x_t_and_once_per_stochastic_step(grid, eta):
    draws = Draws(1, 1, 2, 2)
    seen: list[Step] = []
    x = sample(lambda x, t, labels: 0.5 * x, grid, draws, eta=eta, callback=seen.append)
    assert draws.count == (1 if eta == 0 else len(grid))
    assert [step.done for step in seen] == list(range(1, len(grid) + 1))
    assert torch.equal(seen[-1].x, x)
    assert torch.equal(seen[-1].x, seen[-1].x0_hat)  # ᾱ = 1 at the end: the last x is x̂_0 itself


@pytest.mark.parametrize("v", [-1.0, 0.3])
def test_learned_noise_is_finite_at_a_repeated_time(v):
    def network(x, t, labels):
        return torch.cat([0.3 * x, torch.full_like(x, v)], 1)

    grid = grid_of("cosine", 1000, spaced_timesteps("ddim-quadratic", 100, 1000))
    assert bool(sample(network, grid, Draws(2, 1, 3, 3), eta=1.0, noise="learned").isfinite().all())


@pytest.mark.slow
@settings(max_examples=25)
@given(grids(2), st.floats(1e-3, 2))
def test_error_for_too_large_eta_contains_the_maximum(grid, above):
    largest = max_eta(grid)
    with pytest.raises(UsageError, match=r"give 0 to \d\.\d{4}$") as refusal:
        sample(lambda x, t, labels: x, grid, Draws(1, 1, 2, 2), eta=largest * (1 + above))
    reported = float(re.findall(r"[\d.]+$", str(refusal.value))[0])
    assert 0 <= largest - reported < 1.0001e-4
    for eta in (reported, largest):
        x = sample(lambda x, t, labels: 0 * x, grid, Draws(1, 1, 2, 2), eta=eta)
        assert bool(torch.isfinite(x).all())


@given(grids(), st.booleans())
def test_steps_of_dpm_solver_match_the_papers_formula(grid, clip):
    """Steps after the first are of order 2. Much longer steps extrapolate less."""
    data, start = papers.GaussianData(0.3, 0.4), randn(1, 1, 3, 3)
    alphas_cumprod, x = grid.alphas_cumprod.numpy(), start.numpy()
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    log_snr = np.log(alpha / sigma)
    before: np.ndarray | None = None  # x̂_0 of the step before
    for i in reversed(range(len(grid))):
        x_0 = (x - sigma[i] * data.eps(x, alphas_cumprod[i])) / alpha[i]
        x_0 = np.clip(x_0, -1, 1) if clip else x_0
        if i == 0:
            x = x_0
            break
        h, d = log_snr[i - 1] - log_snr[i], x_0
        if before is not None:
            r = (log_snr[i] - log_snr[i + 1]) / h
            d = x_0 + (x_0 - before) * min(1 / (2 * r), 1 / 4 + r / 2)
        x, before = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * (math.exp(-h) - 1) * d, x_0
    bars = dict(zip(grid.times.tolist(), alphas_cumprod.tolist(), strict=True))
    network = lambda x, t, labels: data.eps(x, bars[int(t[0])])  # noqa: E731
    found = sample(network, grid, lambda: start, sampler=DPMSolverMultistep, clip=clip)
    assert np.allclose(found, x, rtol=1e-6, atol=1e-6)
