"""Results of a GPU against those of the CPU: images in bf16, features and distances."""

import numpy as np
import pytest
import torch

from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.scores.kernel_distance import Kernel, kernel_distance, own_sums, subsets
from diffusion.evaluate.scores.moments import frechet_distance, statistics
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import freeze
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import generate, mixed_condition
from tests.gpu.devices import CPU, DEVICES, SLOW_ON_CPU, exactly
from tests.helpers.digits_sweep import real_digits
from tests.helpers.networks import artefact_of, network_of, spec_of

NEAR, SPARE = 8, 0.05  # grey levels; tolerance of the share of such pixels


def images(device: torch.device, precision: str, count: int) -> torch.Tensor:
    """Return images of the same model."""
    artefact = artefact_of(spec_of(), precision=precision)
    model = LoadedModel(freeze(network_of(spec_of()).to(device)), artefact)
    settings = SampleSettings(steps=6, eta=1.0, seed=1)
    condition = mixed_condition(artefact, settings, range(count))
    return generate(model, settings, range(count), condition, device).int()


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_images_are_as_near_to_float32_as_on_a_cpu(device) -> None:
    exact = images(CPU, "fp32", 16)
    with exactly(device):
        shares = [((images(at, "bf16", 16) - exact).abs() <= NEAR).float().mean() for at in (device, CPU)]
    assert shares[0] >= shares[1] - SPARE
    assert shares[1] > 0.5, "otherwise the test is meaningless"


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_scores_equal_the_cpus(device) -> None:
    """The CPU itself uses another batch size, which changes rounding only."""
    pictures, _ = real_digits()
    count = 60 if device.type == "cpu" else 600
    noise = np.random.default_rng(0).integers(-30, 31, pictures[:count].shape)
    made = (pictures[:count].astype(int) + noise).clip(0, 255).astype(np.uint8)
    ours, theirs = load_extractor("effnet-lite0-64", device=device), load_extractor("effnet-lite0-64")
    with exactly(device):
        found = distances(*(extract(ours, part, 16).features for part in (made, pictures[count : 2 * count])))
    wanted = distances(*(extract(theirs, part).features for part in (made, pictures[count : 2 * count])))
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1] == pytest.approx(wanted[1], rel=1e-3)


def distances(features: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Return the Fréchet and the kernel distance."""
    drawn = subsets(len(features), len(real))
    kernel = kernel_distance(
        Kernel(features, features), Kernel(features, real), drawn, own_sums(Kernel(real, real), drawn[1])
    )
    return frechet_distance(statistics(features), statistics(real)), float(kernel.mean())
