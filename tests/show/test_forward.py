"""`show forward`: the curves equal the papers', and all images use the same noise."""

import numpy as np
import pytest

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import ProcessConfig
from diffusion.show.forward import MAX_SIDE, forward
from tests.helpers import papers


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_curves_equal_the_papers(timesteps: int) -> None:
    shown = forward(ProcessConfig(timesteps=timesteps, schedule="linear", variance="small", loss="simple"))
    assert next(iter(shown.schedules)) == "linear"
    assert set(shown.schedules) == {"linear", "cosine"}
    linear, cosine = shown.schedules["linear"], shown.schedules["cosine"]
    assert linear.alphas_cumprod == pytest.approx(np.cumprod(1 - papers.ddpm_betas(timesteps)), rel=1e-9)
    unclipped = papers.cosine_alpha_bar(timesteps)[:-1]
    assert cosine.alphas_cumprod[:-1] == pytest.approx(unclipped, rel=1e-9)
    for one in shown.schedules.values():
        bar = one.alphas_cumprod
        assert one.log_snr == pytest.approx(np.log(bar / (1 - bar)), abs=1e-6)
    assert shown.noised == {}


def test_image_ends_as_its_noise_and_a_large_one_is_shrunk() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    shown = forward(ProcessConfig(), image, seed=5)
    noise = to_nhwc(to_uint8(ImageNoise(5, [0], (3, 8, 8)).draw()))[0].astype(int)
    assert shown.times[0] == 0
    assert shown.times[-1] == 999
    for noised in shown.noised.values():
        assert noised.shape == (len(shown.times), 8, 8, 3)
        assert np.abs(noised[0].astype(int) - image).max() <= 10  # σ of the first time is 0.01
        assert np.abs(noised[-1].astype(int) - noise).max() <= 1
    again = forward(ProcessConfig(), image, seed=6).noised["cosine"]
    assert not np.array_equal(again, shown.noised["cosine"])
    large = forward(ProcessConfig(timesteps=3), np.zeros((600, 300, 1), np.uint8))
    assert large.times == [0, 1, 2]
    assert large.noised["cosine"].shape == (3, MAX_SIDE, MAX_SIDE // 2, 1)
