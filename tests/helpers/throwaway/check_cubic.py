"""The spacing has its closed form, and the rule leaves even images as they are."""

import pytest
import torch

from diffusion.process.denoiser import Condition, Prediction
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.section import NoOptions


def test_times_are_cubes_of_even_numbers() -> None:
    assert SPACINGS["cubic"].between(5, 0, 64, NoOptions()) == [0, 1, 8, 27, 64]


def test_guidance_sharpens_what_blurring_changes() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 9.0
    denoiser = GUIDANCE_RULES["blurred"].load()(lambda x, t, condition: Prediction(x, x), 0.5)
    assert denoiser(x, 0, Condition(1)).x0[0, 0, 2, 2].item() == pytest.approx(9 + 0.5 * (9 - 1))
    assert torch.equal(denoiser(x * 0 + 3, 0, Condition(1)).x0, x * 0 + 3)
