"""Posterior, learned variance, losses and VLB terms against the papers and Gaussian data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.denoiser import Condition
from diffusion.process.losses import (
    discretized_log_likelihood,
    log_variance,
    posterior_mean,
    prior_term,
    training_losses,
    vlb_terms,
)
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.spacing import spaced_timesteps
from tests.helpers import papers
from tests.helpers.networks import optimal_log_variance
from tests.helpers.trajectories import OnGrid, grid_of, randn

SCHEDULES = st.sampled_from(["linear", "cosine"])


def x0_of(grid: TimeGrid, x_t: torch.Tensor, index: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return x̂_0 for a predicted ε."""
    return OnGrid(grid).read(eps, x_t, grid.times[index]).x0


@st.composite
def grids(draw: st.DrawFn) -> TimeGrid:
    timesteps = draw(st.integers(4, 1000))
    steps = draw(st.integers(2, timesteps))
    spacing = draw(st.sampled_from(["uniform", "quadratic", "trailing"]))
    return grid_of(draw(SCHEDULES), timesteps, spaced_timesteps(spacing, steps, timesteps))


@given(grids(), st.data())
def test_posterior_matches_bayes_rule(grid, data):
    i = data.draw(st.integers(0, len(grid) - 1))
    x_0, x_t = randn(2, 1, 3, 3, 3)
    previous = float(grid.alpha_prev[i]) ** 2
    alpha = float(grid.alphas_cumprod[i]) / previous
    expected, variance = papers.bayes_posterior(alpha, previous, x_0.numpy(), x_t.numpy())
    mean = posterior_mean(grid, x_0, x_t, torch.tensor([i]))
    assert np.allclose(mean, expected, rtol=1e-6, atol=1e-7)
    assert float(grid.posterior_variance[i]) == pytest.approx(variance, rel=1e-6, abs=1e-15)


@given(grids(), st.data())
def test_learned_variance_matches_iddpm_eq_15(grid, data):
    i = data.draw(st.integers(0, len(grid) - 1))
    v = randn(1, 3, 3, 3).clamp(-1, 1)
    beta = float(grid.betas[i])
    beta_tilde = float(grid.posterior_variance[max(i, 1)])
    given_v = log_variance(grid, "learned", (v + 1) / 2, v, torch.tensor([i])).exp()
    assert np.allclose(given_v, papers.iddpm_variance(v.numpy(), beta, beta_tilde), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_discretized_log_likelihood_matches_ddpm_eq_13_in_both_tails(dtype):
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-0.4, 0.0, 0.3):
        for std in (0.02, 0.1, 1.0):
            expected = -papers.eight_bit_nll(pixels.numpy(), np.full(256, mean), np.full(256, std))
            log_var = torch.full((256,), 2 * math.log(std), dtype=dtype)
            found = discretized_log_likelihood(pixels.to(dtype), torch.full_like(log_var, mean), log_var)
            unclipped = (expected > math.log(1e-12)) | (np.abs(pixels.numpy()) == 1)
            tolerance = 1e-6 if dtype == torch.float64 else 5e-4
            assert np.allclose(found[unclipped], expected[unclipped], rtol=tolerance, atol=tolerance)
            assert bool((found[~unclipped] >= math.log(1e-12) - 1e-3).all())


@pytest.mark.slow
def test_total_vlb_of_optimal_model_equals_data_entropy():
    std, grid = 0.3, grid_of("linear", 1000)
    data = papers.GaussianData(0.0, std)
    pixels = (127.5 * (std * randn(1, 1, 48, 48) + 1)).round().clamp(0, 255)
    x_0 = pixels / 127.5 - 1
    total = float(prior_term(grid, x_0))
    for t in range(1000):
        index = torch.tensor([t])
        x_t = OnGrid(grid).q_sample(x_0, grid.times[index], randn(1, 1, 48, 48, seed=t + 1))
        eps, log_var = data.eps(x_t, grid.alphas_cumprod[t]), optimal_log_variance(data, grid, t)
        x0_hat = x0_of(grid, x_t, index, eps)
        total += float(vlb_terms(grid, x_0, x_t, index, x0_hat, log_var))
    sample_entropy = float((x_0 / std).square().mean()) / 2 + math.log(std * math.sqrt(2 * math.pi))
    assert total == pytest.approx((sample_entropy - math.log(2 / 255)) / math.log(2), abs=0.03)


@given(
    SCHEDULES, st.sampled_from([10, 1000, 4000]), st.sampled_from(["small", "large", "learned"]),
    st.floats(0, 20), st.integers(0, 2**31),
)  # fmt: skip
def test_vlb_terms_are_finite_for_any_network_output(name, timesteps, variance, scale, seed):
    grid = grid_of(name, timesteps)
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor([0, 1, timesteps - 1]).repeat(4)
    x_0 = torch.rand(12, 1, 4, 4, generator=generator) * 2 - 1
    x_t = OnGrid(grid).q_sample(x_0, grid.times[index], torch.randn(x_0.shape, generator=generator))
    eps = scale * torch.randn(x_0.shape, generator=generator)
    fraction = torch.randn(x_0.shape, generator=generator)
    log_var = log_variance(grid, variance, fraction, x_t, index)
    terms = vlb_terms(grid, x_0, x_t, index, x0_of(grid, x_t, index, eps), log_var)
    assert terms.shape == (12,)
    assert bool(torch.isfinite(terms).all())
    assert bool(torch.isfinite(prior_term(grid, x_0)).all())


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_vlb_terms_of_true_eps_depend_only_on_variance(variance):
    grid = grid_of("cosine", 200)
    x_0, noise = randn(2, 6, 2, 4, 4).clamp(-1, 1)
    index = torch.tensor([1, 2, 50, 100, 150, 199])
    x_t = OnGrid(grid).q_sample(x_0, grid.times[index], noise)
    log_var = log_variance(grid, variance, torch.zeros_like(x_0), x_t, index)
    terms = vlb_terms(grid, x_0, x_t, index, x0_of(grid, x_t, index, noise), log_var)
    small, large = grid.posterior_variance[index], grid.betas[index]
    chosen = large if variance == "large" else small
    expected = 0.5 * (chosen.log() - small.log() + small / chosen - 1) / math.log(2)
    assert torch.allclose(terms, expected, atol=1e-9)


def losses_of(config: ProcessConfig, output: torch.Tensor, channels: int):
    process = build_process(config)
    x_0, noise = randn(2, 5, channels, 4, 4).clamp(-1, 1)
    index = torch.tensor([0, 1, 20, 50, 99])
    received = {}

    def network(x, t, labels):
        received.update(x=x, t=t, labels=labels)
        return output

    labels = torch.arange(5)
    losses = training_losses(network, process, x_0, index, noise, Condition(5, labels))
    assert received["t"].tolist() == index.tolist()
    assert torch.equal(received["labels"], labels)
    assert torch.equal(received["x"], process.q_sample(x_0, index, noise))
    return losses, noise, process


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_hybrid_loss_matches_iddpm_eq_16_with_detached_mean(channels):
    config = ProcessConfig(timesteps=100)
    output = randn(5, 2 * channels, 4, 4, seed=3).requires_grad_()
    losses, noise, _ = losses_of(config, output, channels)
    eps = output[:, :channels]
    assert torch.allclose(losses["mse"], (noise - eps).square().mean((1, 2, 3)))
    assert torch.allclose(losses["loss"], losses["mse"] + 0.1 * losses["vlb"])
    (grad,) = torch.autograd.grad(losses["loss"].sum(), output)
    (mse_grad,) = torch.autograd.grad((noise - output[:, :channels]).square().mean((1, 2, 3)).sum(), output)
    # The VLB term has no gradient for the mean.
    assert torch.allclose(grad[:, :channels], mse_grad[:, :channels], atol=1e-12)
    assert bool((grad[:, channels:] != 0).any())


def test_vlb_loss_has_gradients_for_mean_and_variance():
    config = ProcessConfig(timesteps=100, loss="vlb")
    output = randn(5, 2, 4, 4, seed=3).requires_grad_()
    losses, _, process = losses_of(config, output, 1)
    assert torch.allclose(losses["loss"], process.timesteps * losses["vlb"])
    (grad,) = torch.autograd.grad(losses["loss"].sum(), output)
    assert bool((grad[:, :1] != 0).any())
    assert bool((grad[:, 1:] != 0).any())


def test_simple_loss_matches_ddpm_eq_14():
    config = ProcessConfig(timesteps=100, variance="small", loss="simple")
    output = randn(5, 3, 4, 4, seed=3)
    losses, noise, _ = losses_of(config, output, 3)
    assert losses.keys() == {"loss", "mse"}
    assert torch.equal(losses["loss"], (noise - output).square().mean((1, 2, 3)))
