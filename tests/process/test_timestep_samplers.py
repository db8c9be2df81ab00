"""Timestep samplers: unbiased draws, and importance sampling (iDDPM eq. 18) with a full loss history."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process.timestep_samplers import HISTORY, UNIFORM_SHARE, LossAwareSampler, UniformSampler


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(timesteps: int, seed: int = 0) -> tuple[LossAwareSampler, np.ndarray]:
    sampler = LossAwareSampler(timesteps)
    losses = np.random.default_rng(seed).uniform(0.01, 2, (HISTORY, timesteps))
    for row in losses:
        sampler.update(torch.arange(timesteps), torch.from_numpy(row))
    return sampler, losses


@given(st.integers(1, 5000))
@settings(deadline=None)
def test_smallest_and_largest_uniforms_give_first_and_last_timestep(timesteps):
    extremes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert UniformSampler(timesteps).draw(extremes)[0].tolist() == [0, timesteps - 1]
    assert LossAwareSampler(timesteps).draw(extremes)[0].tolist() == [0, timesteps - 1]


def test_loss_aware_sampler_inverts_cumulative_probabilities():
    sampler, _ = filled(7)
    p = sampler.probabilities()
    cumulative = p.cumsum(0)
    assert sampler.draw(cumulative - p / 2)[0].tolist() == list(range(7))
    # A boundary belongs to the next timestep.
    assert sampler.draw(cumulative[:-1])[0].tolist() == list(range(1, 7))


def test_loss_aware_sampler_is_uniform_until_history_is_full():
    sampler = LossAwareSampler(4)
    for _ in range(HISTORY):
        sampler.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(sampler.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    assert bool((sampler.draw(uniforms(100))[1] == 1).all())


@given(st.integers(2, 60), st.integers(0, 1000))
@settings(deadline=None)
def test_probabilities_match_iddpm_eq_18(timesteps, seed):
    sampler, losses = filled(timesteps, seed)
    root = np.sqrt((losses**2).mean(0))
    expected = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / timesteps
    assert np.allclose(sampler.probabilities(), expected)
    assert float(sampler.probabilities().sum()) == pytest.approx(1)


def test_only_last_ten_losses_are_used():
    sampler, losses = filled(3)
    newer = np.array([[5.0, 6.0, 7.0]] * 4)
    for row in newer:
        sampler.update(torch.arange(3), torch.from_numpy(row))
    kept = np.concatenate([losses[4:], newer])
    root = np.sqrt((kept**2).mean(0))
    assert np.allclose(sampler.probabilities(), (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / 3)


def test_repeated_timestep_in_batch_is_recorded_twice():
    sampler = LossAwareSampler(2)
    sampler.update(torch.tensor([1, 1, 0]), torch.tensor([1.0, 2.0, 3.0]))
    assert sampler.counts.tolist() == [1, 2]
    assert sampler.losses[1, :2].tolist() == [1.0, 2.0]


def test_importance_weights_give_unbiased_mean_loss():
    sampler, _ = filled(20)
    loss = torch.linspace(1, 3, 20)
    t, weights = sampler.draw(uniforms(200_000))
    assert float((weights * loss[t]).mean()) == pytest.approx(float(loss.mean()), rel=0.01)
    frequencies = torch.bincount(t, minlength=20) / len(t)
    assert torch.allclose(frequencies.double(), sampler.probabilities(), atol=0.005)


def test_restored_sampler_draws_same_timesteps():
    sampler, _ = filled(20)
    restored = LossAwareSampler(20)
    restored.load_state_dict({name: value.clone() for name, value in sampler.state_dict().items()})
    assert torch.equal(sampler.draw(uniforms(50, 3))[0], restored.draw(uniforms(50, 3))[0])
    restored.update(torch.tensor([0]), torch.tensor([100.0]))
    assert not torch.equal(sampler.losses, restored.losses)  # load_state_dict copies the state


def test_zero_losses_give_uniform_probabilities():
    sampler = LossAwareSampler(3)
    for _ in range(HISTORY):
        sampler.update(torch.arange(3), torch.zeros(3))
    assert torch.allclose(sampler.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
