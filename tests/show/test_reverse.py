"""`show reverse`: the shown trajectory is that of the sampled image."""

import numpy as np
import pytest
import torch

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.noise import ImageNoise
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.show.reverse import reverse
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    spec = spec_of()
    return LoadedModel(network_of(spec), artefact_of(spec))


@pytest.mark.parametrize(("sampler", "eta", "noise"), [("ddim", 0, "small"), ("ddim", 1, "learned")])
def test_trajectory_equals_that_of_sample(loaded: LoadedModel, sampler: str, eta: float, noise: str) -> None:
    settings = SampleSettings(steps=12, eta=eta, noise=noise, sampler=sampler, seed=3)
    condition = mixed_condition(loaded.artefact, settings, [4])
    shown = reverse(loaded, settings, 4, condition, CPU)
    around = mixed_condition(loaded.artefact, settings, range(3, 6))
    batch = generate(loaded, settings, range(3, 6), around, CPU)
    assert np.abs(shown.image.astype(int) - to_nhwc(batch)[1]).max() <= 1  # but for rounding
    start = ImageNoise(3, [4], (1, 8, 8)).draw()
    assert np.array_equal(shown.x[0], to_nhwc(to_uint8(start))[0])
    walked = spaced_timesteps("uniform", 12, 100)[::-1]
    assert (shown.times[0], shown.times[-1], len(shown.times)) == (walked[0], walked[-1], 8)
    assert set(shown.times) <= set(walked)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_last_prediction_is_the_image(loaded: LoadedModel, sampler: str, steps: int) -> None:
    settings = SampleSettings(steps=steps, sampler=sampler)
    shown = reverse(loaded, settings, 0, mixed_condition(loaded.artefact, settings, [0]), CPU)
    assert np.array_equal(shown.x0_hat[-1], shown.image)
    assert len(shown.x) == len(shown.x0_hat) == len(shown.times) == min(steps, 8)
