"""Affine resampling: the filter by its definition, maps by closed forms, independence of images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.train.augmentation import SYM6, affine_resample

TAPS = torch.tensor(SYM6, dtype=torch.float64)
NOTHING = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def images(count: int = 1, side: int = 24) -> torch.Tensor:
    return torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(count))


def places(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of each pixel from the centre, each (side, side)."""
    line = torch.arange(side) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def test_the_filter_is_sym6():
    """It is orthonormal to its even shifts, and its high-pass annihilates polynomials of degree 5."""
    for shift in range(6):
        assert float(TAPS[2 * shift :] @ TAPS[: 12 - 2 * shift]) == pytest.approx(
            float(shift == 0), abs=1e-10
        )
    signs = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)
    for degree in range(6):
        moment = (signs * TAPS.flip(0) * torch.linspace(-1, 1, 12, dtype=torch.float64) ** degree).sum()
        assert float(moment) == pytest.approx(0, abs=1e-9)
    assert float(TAPS.sum()) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("side", [1, 2, 8, 24])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, -3), (-29, 41)])
def test_a_translation_by_whole_pixels_is_exact_and_mirrored_at_the_edges(side, right, down):
    x = images(side=side)
    there = NOTHING + torch.tensor([[0.0, 0.0, right], [0.0, 0.0, down]])
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (50, 50), (50, 50)), mode="symmetric")
    expected = expected[..., 50 + down :, 50 + right :][..., :side, :side]
    assert np.allclose(affine_resample(x, there[None]).numpy(), expected, atol=2e-5)


@settings(deadline=None, max_examples=20)
@given(angle=st.floats(-3.2, 3.2), scale=st.floats(0.6, 1.6), x_0=st.floats(-4, 4), y_0=st.floats(-4, 4))
def test_a_linear_function_is_resampled_exactly(angle, scale, x_0, y_0):
    """Sampling and filters are exact for linear functions, away from the mirrored edges."""
    x, y = places(24)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    seen_x, seen_y = cos * x - sin * y + x_0, sin * x + cos * y + y_0
    inside = torch.maximum(seen_x.abs(), seen_y.abs()) < 6
    inside &= torch.maximum(x.abs(), y.abs()) < 12 - 3 / scale
    maps = torch.tensor([[[cos, -sin, x_0], [sin, cos, y_0]]])
    found = affine_resample((0.03 * x - 0.05 * y + 0.2)[None, None], maps)[0, 0]
    expected = 0.03 * seen_x - 0.05 * seen_y + 0.2
    # Bilinear sampling has an error where the filter's delay does not cancel.
    assert torch.allclose(found[inside], expected[inside], atol=2e-3)


def test_a_smooth_image_is_rotated_like_its_formula():
    x, y = places(32)

    def waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (0.4 * x + 0.2 * y).cos() + (0.3 * y - 0.1 * x).sin()

    cos, sin = math.cos(0.7), math.sin(0.7)
    found = affine_resample(waves(x, y)[None, None], torch.tensor([[[cos, -sin, 1.3], [sin, cos, -0.4]]]))[
        0, 0
    ]
    expected = waves(cos * x - sin * y + 1.3, sin * x + cos * y - 0.4)
    inside = torch.maximum(x.abs(), y.abs()) < 8
    assert float((found - expected)[inside].abs().max()) < 0.03


def test_an_image_does_not_depend_on_the_batch():
    x = images(7, side=9)
    maps = NOTHING + 0.3 * torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = affine_resample(x, maps)
    assert torch.equal(
        torch.cat([affine_resample(x[at : at + 1], maps[at : at + 1]) for at in range(7)]), whole
    )
    assert torch.equal(torch.cat([affine_resample(x[:3], maps[:3]), affine_resample(x[3:], maps[3:])]), whole)
