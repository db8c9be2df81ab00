"""Mixtures of Gaussians: densities, the best denoiser, and a denoiser within a process."""

import math

import pytest
import torch

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.process.condition import Condition
from tests.helpers import papers
from tests.helpers.trajectories import process_of


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.8, 0.6), (0.1, 0.995)])
def test_the_best_guess_is_tweedies_formula(alpha: float, sigma: float) -> None:
    """E[x_0 | x_t] = (x_t + σ²·∇ log p(x_t))/α, by automatic differentiation of the density."""
    mixture, x = Mixture(randn(4, 3, seed=1), 0.3), randn(20, 3).requires_grad_()
    (slope,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    assert torch.allclose(mixture.x0(x, alpha, sigma), (x + sigma**2 * slope) / alpha, atol=1e-12)


def test_one_gaussian_is_the_papers() -> None:
    data, mixture = papers.GaussianData(0.3, 0.4), Mixture(torch.full((1, 1), 0.3, dtype=torch.float64), 0.4)
    process, x, t = process_of("cosine", 100), randn(50, 1, 1, 1), 40
    said = MixtureDenoiser(mixture, process)(x, t, Condition(50))
    alpha_bar = float(process.full_grid().alphas_cumprod[t])
    assert torch.allclose(said.eps, data.eps(x, alpha_bar), atol=1e-12)
    assert torch.allclose(alpha_bar**0.5 * said.x0 + (1 - alpha_bar) ** 0.5 * said.eps, x, atol=1e-12)
    logs = mixture.log_density(x.flatten(1))
    assert torch.allclose(logs, torch.distributions.Normal(0.3, 0.4).log_prob(x.flatten()))


def test_rows_at_times_of_their_own_are_those_of_each_time() -> None:
    denoiser = MixtureDenoiser(ring(3, 0.7, 0.1), process_of("linear", 100))
    x, times = randn(4, 2, 1, 1), torch.tensor([0, 10, 50, 99])
    together = denoiser(x, times, Condition(4))
    alone = [denoiser(x[i : i + 1], int(times[i]), Condition(1)) for i in range(4)]
    assert torch.allclose(together.x0, torch.cat([said.x0 for said in alone]), atol=1e-12)
    assert torch.allclose(together.eps, torch.cat([said.eps for said in alone]), atol=1e-12)


def test_a_ring_lies_on_its_circle_and_draws_have_its_moments() -> None:
    mixture = ring(5, 0.75, 0.08)
    assert torch.allclose(mixture.means.norm(dim=1), torch.full((5,), 0.75, dtype=torch.float64))
    drawn = mixture.draw(20_000, torch.Generator().manual_seed(0))
    assert drawn.mean(0).abs().max() < 0.02
    # On a circle of radius r each axis has r²/2, and the Gaussians add their own.
    assert drawn.var(0) == pytest.approx([0.75**2 / 2 + 0.08**2] * 2, rel=0.03)
    entropy = -mixture.log_density(drawn).mean()  # that of well parted Gaussians, one of five
    assert entropy == pytest.approx(math.log(5) + 1 + math.log(2 * math.pi * 0.08**2), rel=0.02)
