"""Gaussian mixtures: densities, the optimal denoiser, and its use in a process."""

import math

import pytest
import torch

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.process.denoiser import Condition
from tests.helpers import papers
from tests.helpers.trajectories import process_of, randn


def log_density(mixture: Mixture, x: torch.Tensor, alpha: float = 1.0, sigma: float = 0.0) -> torch.Tensor:
    """Return log p(x_t) of points (N, D) by torch's distributions."""
    normal = torch.distributions.Normal(alpha * mixture.means, math.hypot(alpha * mixture.std, sigma))
    even = torch.distributions.Categorical(torch.ones(len(mixture.means), dtype=torch.float64))
    parts = torch.distributions.Independent(normal, 1)
    return torch.distributions.MixtureSameFamily(even, parts).log_prob(x)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.8, 0.6), (0.1, 0.995)])
def test_optimal_denoiser_matches_tweedie_formula(alpha: float, sigma: float) -> None:
    """E[x_0 | x_t] = (x_t + σ²·∇ log p(x_t))/α, by automatic differentiation of the density."""
    mixture, x = Mixture(randn(4, 3, seed=1), 0.3), randn(20, 3).requires_grad_()
    (score,) = torch.autograd.grad(log_density(mixture, x, alpha, sigma).sum(), x)
    assert torch.allclose(mixture.x0(x, alpha, sigma), (x + sigma**2 * score) / alpha, atol=1e-12)


def test_single_gaussian_matches_closed_form() -> None:
    data, mixture = papers.GaussianData(0.3, 0.4), Mixture(torch.full((1, 1), 0.3, dtype=torch.float64), 0.4)
    process, x, t = process_of("cosine", 100), randn(50, 1, 1, 1), 40
    output = MixtureDenoiser(mixture, process)(x, t, Condition(50))
    alpha_bar = float(process.full_grid().alphas_cumprod[t])
    assert torch.allclose(output.eps, data.eps(x, alpha_bar), atol=1e-12)
    assert torch.allclose(alpha_bar**0.5 * output.x0 + (1 - alpha_bar) ** 0.5 * output.eps, x, atol=1e-12)


def test_ring_means_are_on_circle_and_samples_match_moments() -> None:
    mixture = ring(5, 0.75, 0.08)
    assert torch.allclose(mixture.means.norm(dim=1), torch.full((5,), 0.75, dtype=torch.float64))
    samples = mixture.draw(20_000, torch.Generator().manual_seed(0))
    assert samples.mean(0).abs().max() < 0.02
    # Per axis, a circle of radius r has variance r²/2. The Gaussians add their own variance.
    assert samples.var(0) == pytest.approx([0.75**2 / 2 + 0.08**2] * 2, rel=0.03)
    entropy = -log_density(mixture, samples).mean()  # the entropy of five well-separated Gaussians
    assert entropy == pytest.approx(math.log(5) + 1 + math.log(2 * math.pi * 0.08**2), rel=0.02)
