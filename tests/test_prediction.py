"""What a network predicts and how its errors are weighted: the same model in both parametrisations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.gaussian import in_eps, min_snr_weight, training_losses
from diffusion.process_config import ProcessConfig
from diffusion.sampling import sample
from diffusion.schedule import (
    Schedule,
    predict_x0,
    q_sample,
    spaced_timesteps,
    velocity,
    velocity_to_eps,
    velocity_to_x0,
)
from tests import papers

NAMES = st.sampled_from(["linear", "cosine"])


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(NAMES, st.integers(2, 1000), st.integers(0, 2**31))
def test_the_velocity_knows_noise_and_image(name, timesteps, seed):
    schedule = Schedule.named(name, timesteps)
    index = torch.randint(timesteps, (6,), generator=torch.Generator().manual_seed(seed))
    x_0, noise = randn(2, 6, 2, 4, 4, seed=seed)
    x_t = q_sample(schedule, x_0, index, noise)
    moved = velocity(schedule, x_0, index, noise)
    assert torch.allclose(velocity_to_eps(schedule, x_t, index, moved), noise, atol=1e-12)
    assert torch.allclose(velocity_to_x0(schedule, x_t, index, moved), x_0, atol=1e-12)


def test_the_velocity_is_the_derivative_of_x_t_by_the_angle():
    x_0, noise, angle = randn(4, seed=0), randn(4, seed=1), torch.tensor(0.7, dtype=torch.float64)
    schedule = Schedule(torch.tensor([0]), angle.cos().square()[None])
    first = torch.zeros(4, dtype=torch.long)
    found = velocity(schedule, x_0[:, None], first, noise[:, None])[:, 0]
    path = lambda phi: phi.cos() * x_0 + phi.sin() * noise  # noqa: E731
    small = 1e-6
    slope = (path(angle + small) - path(angle - small)) / (2 * small)
    assert torch.allclose(found, slope, atol=1e-8)


def both_ways(schedule, process, error):
    """One model of x̂_0 = x_0 + error, once as an ε- and once as a velocity-network."""
    alpha_bar = schedule.alphas_cumprod

    def network(x, t, labels):
        a = alpha_bar[t].reshape(-1, 1, 1, 1)
        x0_hat = 0.3 * x + error
        eps = (x - a.sqrt() * x0_hat) / (1 - a).sqrt()
        predicted = eps if process.prediction == "eps" else a.sqrt() * eps - (1 - a).sqrt() * x0_hat
        return torch.cat([predicted, torch.tanh(x)], dim=1)

    return network


@settings(deadline=None, max_examples=40)
@given(NAMES, st.integers(2, 400), st.sampled_from(["simple", "hybrid"]), st.integers(0, 2**31))
def test_under_min_snr_both_parametrisations_have_one_loss(name, timesteps, loss, seed):
    schedule = Schedule.named(name, timesteps)
    index = torch.randint(timesteps, (6,), generator=torch.Generator().manual_seed(seed))
    x_0, noise, error = randn(3, 6, 1, 4, 4, seed=seed)
    found = []
    for prediction in ("eps", "velocity"):
        variance = "small" if loss == "simple" else "learned"
        process = ProcessConfig(
            timesteps=timesteps, schedule=name, loss=loss, variance=variance, prediction=prediction,
            weighting="min-snr",
        )  # fmt: skip
        network = both_ways(schedule, process, error)
        if variance == "small":
            network = lambda x, t, labels, inner=network: inner(x, t, labels)[:, :1]  # noqa: E731
        found.append(training_losses(network, schedule, process, x_0, index, noise, None))
    assert torch.allclose(found[0]["loss"], found[1]["loss"], rtol=1e-6)


def test_the_weight_is_flat_in_x0_up_to_the_limit():
    process = ProcessConfig(weighting="min-snr", prediction="eps")
    schedule = Schedule.named("cosine", 1000)
    index = torch.arange(1000)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weight = min_snr_weight(schedule, process, index)
    assert torch.equal(weight[snr <= 5], torch.ones(int((snr <= 5).sum()), dtype=torch.float64))
    assert torch.allclose((weight * snr)[snr > 5], torch.tensor(5.0, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++"])
def test_samplers_see_one_model_in_both_parametrisations(steps, sampler):
    schedule = Schedule.named("cosine", 1000)
    images = []
    for prediction in ("eps", "velocity"):
        process = ProcessConfig(prediction=prediction)
        network = in_eps(both_ways(schedule, process, 0.1), process)
        spaced = schedule.spaced(spaced_timesteps("uniform", steps, 1000))
        images.append(sample(network, spaced, lambda: randn(2, 1, 4, 4, seed=5), sampler=sampler))
    assert torch.allclose(images[0], images[1], atol=1e-6)


def test_a_velocity_oracle_brings_ddim_back_to_the_image():
    schedule, process = Schedule.named("cosine", 1000), ProcessConfig(prediction="velocity")
    data = papers.GaussianData(0.2, 0.4)

    def oracle(x, t, labels):
        alpha_bar = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        eps = data.eps(x, alpha_bar)
        return velocity(schedule, predict_x0(schedule, x, t, eps), t, eps)

    spaced = schedule.spaced(spaced_timesteps("uniform", 1000, 1000))
    images = sample(in_eps(oracle, process), spaced, lambda: randn(1, 1, 64, 64, seed=2), clip=False)
    assert float(images.mean()) == pytest.approx(0.2, abs=0.03)
    assert float(images.std()) == pytest.approx(0.4, abs=0.03)
