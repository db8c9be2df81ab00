"""Bits per dimension: the entropy of Gaussian data under the optimal model, and sums of the terms."""

import math

import numpy as np
import pytest
import torch

from diffusion.analysis.likelihood import bits_per_dimension
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.errors import UsageError
from tests.helpers.networks import OptimalNetwork, artefact_of, loaded_model, spec_of

T, STD = 400, 0.3
PROCESS = ProcessConfig(timesteps=T, schedule="linear")


def pixels(count: int = 40) -> np.ndarray:
    x_0 = STD * np.random.default_rng(0).standard_normal((count, 8, 8, 1))
    return np.clip(np.round(127.5 * (x_0 + 1)), 0, 255).astype(np.uint8)


def optimal() -> LoadedModel:
    spec = spec_of(num_classes=0, null_class=False)
    return LoadedModel(OptimalNetwork(PROCESS, STD), artefact_of(spec, process=PROCESS))


def test_bits_of_optimal_model_equal_data_entropy():
    images = pixels()
    bits = bits_per_dimension(optimal(), images, Condition(len(images)))
    x_0 = images / 127.5 - 1
    entropy = (x_0**2).mean() / STD**2 / 2 + math.log(STD * math.sqrt(2 * math.pi)) - math.log(2 / 255)
    assert float(bits.total.mean()) == pytest.approx(entropy / math.log(2), abs=0.05)


@pytest.fixture(scope="module")
def random_model() -> tuple[LoadedModel, np.ndarray, Condition]:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    return loaded_model(process={"timesteps": 30}), images, Condition(5, torch.arange(5))


def test_terms_and_prior_sum_to_total(random_model):
    loaded, images, condition = random_model
    bits = bits_per_dimension(loaded, images, condition)
    assert bits.estimate == "vlb"
    assert bits.times.tolist() == list(range(30))
    assert bits.total.shape == bits.prior.shape == (5,)
    assert bool((bits.terms >= -1e-9).all())
    assert float(bits.total.mean()) == pytest.approx(float(bits.terms.sum() + bits.prior.mean()), rel=1e-9)
    assert bool(torch.isfinite(bits.total).all())


def test_bits_are_independent_of_batch_size(random_model):
    loaded, images, condition = random_model
    full = bits_per_dimension(loaded, images, condition)
    for size in (1, 2):
        parts = bits_per_dimension(loaded, images, condition, batch_size=size)
        assert torch.allclose(full.total, parts.total, rtol=1e-4)
        assert torch.allclose(full.terms, parts.terms, rtol=1e-3, atol=1e-6)
    first = bits_per_dimension(loaded, images[:2], condition.rows(slice(2)))
    assert torch.allclose(first.total, full.total[:2], rtol=1e-4)
    other = bits_per_dimension(loaded, images, condition, seed=1)
    assert not torch.equal(other.total, full.total)


def test_fewer_steps_use_spaced_timesteps(random_model):
    loaded, images, condition = random_model
    reported: list[tuple[int, ...]] = []
    report = lambda *done: reported.append(done)  # noqa: E731
    bits = bits_per_dimension(loaded, images, condition, steps=4, progress=report)
    assert bits.times.tolist() == [0, 10, 19, 29]
    assert reported[-1] == (20, 20)
    assert bits.total.shape == (5,)
    with pytest.raises(UsageError, match="31 sampling steps"):
        bits_per_dimension(loaded, images, condition, steps=31)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_fixed_variances_give_finite_bounds(variance):
    free = {"num_classes": 0, "null_class": False}
    loaded = loaded_model(process={"timesteps": 20, "variance": variance}, out_channels=1, **free)
    images = np.zeros((2, 8, 8, 1), np.uint8)
    assert bool(torch.isfinite(bits_per_dimension(loaded, images, Condition(2)).total).all())
