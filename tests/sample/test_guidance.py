"""Classifier-free guidance: CFG eq. 6 for every number of channels, with and without a learned variance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.sample.guidance import classifier_free
from diffusion.system.errors import UsageError
from tests.helpers.trajectories import process_of

NULL = 5
PROCESS = process_of("cosine", 100)


class Recorder:
    """A network whose ε and v depend on the class. It records the batch size of each forward pass."""

    def __init__(self, channels: int, learned: bool) -> None:
        self.channels, self.learned, self.batches = channels, learned, []

    def __call__(self, x, t, labels):
        self.batches.append(len(x))
        by_class = labels.reshape(-1, 1, 1, 1).to(x)
        eps = x * (1 + by_class) + t.reshape(-1, 1, 1, 1)
        return torch.cat([eps, eps - 100 * by_class], 1) if self.learned else eps


def inputs(channels: int):
    x = torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.tensor([7, 8, 9]), Condition(3, torch.tensor([0, 2, 4]), NULL)


@settings(deadline=None)
@given(st.integers(1, 4), st.booleans(), st.floats(0.01, 10))
def test_guidance_changes_the_mean_of_all_channels_but_no_variance(channels, learned, weight):
    network = Recorder(channels, learned)
    denoiser = NetworkDenoiser(network, PROCESS)
    x, t, condition = inputs(channels)
    found = classifier_free(denoiser, weight)(x, t, condition)
    assert network.batches == [6]  # one forward pass on a doubled batch
    conditional, unconditional = denoiser(x, t, condition), denoiser(x, t, condition.null())
    eps = (1 + weight) * conditional.eps - weight * unconditional.eps
    assert torch.allclose(found.eps, eps)
    alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in PROCESS.alpha_sigma(t))
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-9)
    assert (found.variance_fraction is None) != learned
    if learned:
        assert torch.equal(found.variance_fraction, conditional.variance_fraction)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=3, max_size=3), st.booleans())
def test_rows_have_their_own_weight_and_unguided_rows_cost_one_nfe(weights, one_time):
    network = Recorder(2, learned=True)
    denoiser = NetworkDenoiser(network, PROCESS)
    x, t, condition = inputs(2)
    times = 7 if one_time else t
    found = classifier_free(denoiser, torch.tensor(weights))(x, times, condition)
    assert network.batches == [3 + sum(weight > 0 for weight in weights)]
    for row, weight in enumerate(weights):
        alone = slice(row, row + 1)
        time = 7 if one_time else t[alone]
        expected = classifier_free(denoiser, weight)(x[alone], time, condition.rows(alone))
        for part, expected_part in zip(found.rows(alone), expected, strict=True):
            assert part is expected_part is None or torch.allclose(part, expected_part)


@pytest.mark.parametrize("weight", [0.0, torch.zeros(3)])
def test_weight_0_returns_the_conditional_denoiser(weight):
    denoiser = NetworkDenoiser(Recorder(1, learned=True), PROCESS)
    assert classifier_free(denoiser, weight) is denoiser


def test_guidance_requires_labels_and_a_null_class():
    x, t, condition = inputs(1)
    guided = classifier_free(NetworkDenoiser(Recorder(1, False), PROCESS), 1.0)
    with pytest.raises(UsageError, match="unconditional"):
        guided(x, t, condition.unlabelled())
    with pytest.raises(UsageError, match="p_uncond"):
        guided(x, t, Condition(3, condition.labels))
