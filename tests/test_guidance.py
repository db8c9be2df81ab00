"""Classifier-free guidance: CFG eq. 6 for every number of channels, with and without a learned variance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import UsageError
from diffusion.guidance import classifier_free

NULL = 5


class Recorder:
    """A network whose ε and v depend on the class; it counts its passes and their batch sizes."""

    def __init__(self, channels: int, learned: bool) -> None:
        self.channels, self.learned, self.batches = channels, learned, []

    def __call__(self, x, t, labels):
        self.batches.append(len(x))
        by_class = labels.reshape(-1, 1, 1, 1).to(x)
        eps = x * (1 + by_class) + t.reshape(-1, 1, 1, 1)
        return torch.cat([eps, eps - 100 * by_class], 1) if self.learned else eps


def inputs(channels: int):
    x = torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.tensor([7, 8, 9]), torch.tensor([0, 2, 4])


@settings(deadline=None)
@given(st.integers(1, 4), st.booleans(), st.floats(0.01, 10))
def test_all_eps_channels_are_guided_and_only_they(channels, learned, weight):
    network = Recorder(channels, learned)
    x, t, labels = inputs(channels)
    output = classifier_free(network, weight, NULL, channels)(x, t, labels)
    assert network.batches == [6]  # one pass on a doubled batch
    conditional = network(x, t, labels)
    unconditional = network(x, t, torch.full_like(labels, NULL))
    eps = (1 + weight) * conditional[:, :channels] - weight * unconditional[:, :channels]
    assert torch.allclose(output[:, :channels], eps)
    assert torch.equal(output[:, channels:], conditional[:, channels:])
    assert output.shape == conditional.shape


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_weight_0_is_the_conditional_network_in_one_pass(channels):
    network = Recorder(channels, learned=True)
    guided = classifier_free(network, 0.0, NULL, channels)
    assert guided is network


def test_guidance_of_an_unconditional_model_is_refused():
    x, t, _ = inputs(1)
    with pytest.raises(UsageError, match="unconditional"):
        classifier_free(Recorder(1, False), 1.0, NULL, 1)(x, t, None)
