"""Bits per dimension by the probability-flow ODE: the exact density of Gaussian data, and independence."""

import math

import numpy as np
import pytest
import torch

from diffusion.analysis.likelihood import Bits, bits_per_dimension
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.sample.sampler import NonFiniteError
from tests.helpers.networks import artefact_of, network_of, spec_of

SIGMA_MIN, MEAN = 0.002, 0.1


class GaussianNetwork(torch.nn.Module):
    """E[x_0 | x_t] for images from N(MEAN, covariance (D, D)), of processes whose network predicts x_0."""

    def __init__(self, schedule: str, covariance: torch.Tensor) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # determines its device
        self.schedule, self.covariance = schedule, covariance

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        time = float(t[0])
        alpha, sigma = (1, math.exp(time / 250)) if self.schedule == "edm" else (1 - time / 1000, time / 1000)
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance))
        gain = alpha * torch.linalg.solve(noisy, self.covariance)
        return (MEAN + (x.double().flatten(1) - alpha * MEAN) @ gain).reshape(x.shape).float()


def gaussian_bits(
    schedule: str, covariance: torch.Tensor, shape: tuple[int, int], count: int
) -> tuple[Bits, torch.Tensor]:
    """Return the bits of images from the Gaussian, and those of its density at them, (N,)."""
    normal = torch.distributions.MultivariateNormal(torch.full((len(covariance),), MEAN).double(), covariance)
    rows = np.random.default_rng(0).standard_normal((count, len(covariance))) @ normal.scale_tril.T.numpy()
    images = np.clip(np.round(127.5 * (rows + MEAN + 1)), 0, 255).astype(np.uint8)
    process = ProcessConfig(schedule=schedule, prediction="x0")
    spec = spec_of(num_classes=0, null_class=False, out_channels=1)
    loaded = LoadedModel(GaussianNetwork(schedule, covariance), artefact_of(spec, process=process))
    bits = bits_per_dimension(loaded, images.reshape(count, *shape, 1), Condition(count))
    blurred = covariance + SIGMA_MIN**2 * torch.eye(len(covariance))
    density = torch.distributions.MultivariateNormal(normal.mean, blurred)
    nats = -density.log_prob(torch.from_numpy(images / 127.5 - 1)) / len(covariance) + math.log(127.5)
    return bits, nats / math.log(2)


@pytest.mark.parametrize("schedule", ["edm", "flow"])
def test_bits_of_independent_pixels_equal_their_density_and_entropy(schedule):
    """The Jacobian is diagonal, so that random signs give its exact trace."""
    stds = torch.linspace(0.15, 0.35, 64, dtype=torch.float64)
    bits, exact = gaussian_bits(schedule, stds.square().diag(), (8, 8), 50)
    assert bits.estimate == "ode"
    assert torch.allclose(bits.total, exact, atol=0.01)
    assert float(bits.total.mean()) == pytest.approx(float(exact.mean()), abs=0.002)
    assert float(bits.terms.sum() + bits.prior.mean()) == pytest.approx(float(bits.total.mean()), abs=1e-9)
    entropy = float((127.5 * stds * math.sqrt(2 * math.pi * math.e)).log2().mean())
    assert float(bits.total.mean()) == pytest.approx(entropy, abs=4 * float(bits.total.std()) / 50**0.5)


@pytest.mark.parametrize("schedule", ["edm", "flow"])
def test_random_signs_have_no_bias_for_correlated_pixels(schedule):
    covariance = torch.tensor([[0.09, 0.07], [0.07, 0.08]], dtype=torch.float64)
    bits, exact = gaussian_bits(schedule, covariance, (1, 2), 2000)
    error = bits.total - exact
    assert float(error.std()) > 0.1
    assert abs(float(error.mean())) < 4 * float(error.std()) / 2000**0.5


@pytest.fixture
def random_model() -> LoadedModel:
    spec = spec_of(out_channels=1)
    process = ProcessConfig(schedule="edm", sigma_data=0.5)
    return LoadedModel(network_of(spec), artefact_of(spec, process=process))


def test_image_depends_on_its_seed_index_and_label_alone(random_model):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)

    def bits(count: int = 5, first: int = 0, **options: int) -> Bits:
        condition = Condition(count, torch.tensor([first, 1, 2, 3, 4])[:count])
        return bits_per_dimension(random_model, images[:count], condition, steps=4, **options)

    full = bits()
    assert len(full.times) == 4
    assert full.times[0] == pytest.approx(SIGMA_MIN)
    for other in (bits(batch_size=1), bits(batch_size=2), bits(count=2)):
        assert torch.allclose(other.total, full.total[: len(other.total)], rtol=1e-4)
    assert not torch.isclose(bits(seed=1).total, full.total, rtol=1e-3).any()
    is_equal = torch.isclose(bits(first=7).total, full.total, rtol=1e-4)
    assert is_equal.tolist() == [False, True, True, True, True]


def test_nan_names_the_image_and_the_step(random_model):
    next(random_model.network.parameters()).data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"image 0 is NaN or infinite from step 1 on \(t = 0\.002\)"):
        bits_per_dimension(random_model, np.zeros((2, 8, 8, 1), np.uint8), Condition(2, torch.arange(2)))
