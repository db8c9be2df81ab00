"""Bits per dimension: the entropy or density of Gaussian data under the optimal model, sums of terms."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.analysis.likelihood import Bits, bits_per_dimension
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.sample.sampler import NonFiniteError
from diffusion.system.errors import UsageError
from tests.helpers.networks import OptimalNetwork, artefact_of, loaded_model, network_of, spec_of

T, STD = 400, 0.3
PROCESS = ProcessConfig(timesteps=T, schedule="linear")


def pixels(count: int = 40) -> np.ndarray:
    x_0 = STD * np.random.default_rng(0).standard_normal((count, 8, 8, 1))
    return np.clip(np.round(127.5 * (x_0 + 1)), 0, 255).astype(np.uint8)


def optimal() -> LoadedModel:
    spec = spec_of(num_classes=0, null_class=False)
    return LoadedModel(OptimalNetwork(PROCESS, STD), artefact_of(spec, process=PROCESS))


@pytest.mark.slow
def test_bits_of_optimal_model_equal_data_entropy():
    images = pixels()
    bits = bits_per_dimension(optimal(), images, Condition(len(images)))
    x_0 = images / 127.5 - 1
    entropy = (x_0**2).mean() / STD**2 / 2 + math.log(STD * math.sqrt(2 * math.pi)) - math.log(2 / 255)
    assert float(bits.total.mean()) == pytest.approx(entropy / math.log(2), abs=0.05)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(params=["vlb", "ode"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """Return a random model of a discrete or a continuous process."""
    if request.param == "vlb":
        return loaded_model(process={"timesteps": 30})
    spec = spec_of(out_channels=1)
    process = ProcessConfig(schedule="edm", sigma_data=0.5)
    return LoadedModel(network_of(spec), artefact_of(spec, process=process))


def bits_of(loaded: LoadedModel, count: int = 5, first: int = 0, **options: Any) -> Bits:
    """Return the bits of the first images; `first` is the class of the first one."""
    condition = Condition(count, torch.tensor([first, 1, 2, 3, 4])[:count])
    return bits_per_dimension(loaded, IMAGES[:count], condition, **{"steps": 4, **options})


@pytest.mark.slow
def test_image_depends_on_its_seed_index_and_label_alone(model):
    full = bits_of(model)
    for other in (bits_of(model, batch_size=1), bits_of(model, batch_size=2), bits_of(model, count=2)):
        assert torch.allclose(other.total, full.total[: len(other.total)], rtol=1e-4)
        assert len(other.total) < 5 or torch.allclose(other.terms, full.terms, rtol=1e-3, atol=1e-6)
    assert not torch.isclose(bits_of(model, seed=1).total, full.total, rtol=1e-4).any()
    is_equal = torch.isclose(bits_of(model, first=7).total, full.total, rtol=1e-5)
    assert is_equal.tolist() == [False, True, True, True, True]


def test_nan_names_the_image_and_the_step(model):
    next(model.network.parameters()).data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"image 0 is NaN or infinite from step 1 on \(t = (0|0\.002)\)"):
        bits_of(model)


def test_terms_and_prior_sum_to_total():
    loaded, reported = loaded_model(process={"timesteps": 30}), list[tuple[int, ...]]()
    for steps, times in ((None, list(range(30))), (4, [0, 10, 19, 29])):
        bits = bits_of(loaded, steps=steps, progress=lambda *done: reported.append(done))
        assert bits.estimate == "vlb"
        assert bits.times.tolist() == times
        assert bits.total.shape == bits.prior.shape == (5,)
        assert bool((bits.terms >= -1e-9).all())
        mean = float(bits.terms.sum() + bits.prior.mean())
        assert float(bits.total.mean()) == pytest.approx(mean, rel=1e-9)
        assert reported[-1] == (5 * len(times), 5 * len(times))
    with pytest.raises(UsageError, match="31 sampling steps"):
        bits_of(loaded, steps=31)


# The likelihood by the probability-flow ODE.

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


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["edm", "flow"])
def test_random_signs_have_no_bias_for_correlated_pixels(schedule):
    covariance = torch.tensor([[0.09, 0.07], [0.07, 0.08]], dtype=torch.float64)
    bits, exact = gaussian_bits(schedule, covariance, (1, 2), 2000)
    error = bits.total - exact
    assert float(error.std()) > 0.1
    assert abs(float(error.mean())) < 4 * float(error.std()) / 2000**0.5
