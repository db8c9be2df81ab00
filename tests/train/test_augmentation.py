"""Augmentation: draws by the paper's table, affine resampling by closed forms, the network's condition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.model.network_registry import NetworkSpec
from diffusion.system.errors import UsageError
from diffusion.train.augmentation import affine_resample, augment, draw_params
from diffusion.train.initial_state import new_state
from diffusion.train.train_config import AUGMENTATIONS, AugmentConfig
from tests.helpers.trainings import CPU, plan_of, run

NAME = ("train", 0, 0)
MANY = range(4000)
SURE = 1e-4  # significance level of the tests; the draws are the same in every run
OFTEN = {"augment": {"probability": 0.5}}
NOTHING = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def drawn(**settings: Any) -> torch.Tensor:
    """Return (4000, 9) conditions of a network."""
    return draw_params(AugmentConfig(**settings), NAME, MANY).condition()


def test_kinds_have_the_distributions_of_the_table():
    condition = drawn(probability=0.3)
    columns = dict(zip(AUGMENTATIONS, condition.split([1, 1, 1, 2, 2, 2], dim=1), strict=True))
    made = {kind: (numbers != 0).any(1) for kind, numbers in columns.items()}
    for kind, share in {"x-flip": 0.5, "y-flip": 0.15}.items():
        assert stats.binomtest(int(made[kind].sum()), len(MANY), share).pvalue > SURE
    for kind in AUGMENTATIONS[2:]:
        assert stats.binomtest(int(made[kind].sum()), len(MANY), 0.3).pvalue > SURE
    for one in AUGMENTATIONS:
        for other in AUGMENTATIONS[: AUGMENTATIONS.index(one)]:
            table = [
                [int((a & b).sum()) for b in (made[one], ~made[one])] for a in (made[other], ~made[other])
            ]
            assert stats.chi2_contingency(np.array(table)).pvalue > SURE
    for column in (2, 7, 8):
        assert stats.kstest(condition[condition[:, column] != 0][:, column].numpy(), "norm").pvalue > SURE
    angle = torch.atan2(condition[:, 4], condition[:, 3] + 1)[made["rotation"]] / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > SURE


def test_untransformed_images_are_unchanged_and_flips_are_exact():
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, condition = augment(images, AugmentConfig(), NAME, range(400))
    still = ~condition[:, 2:].any(1)
    assert 0.3 < still.float().mean() < 0.8
    expected = torch.where(condition[:, 0, None, None, None] > 0, images.flip(3), images)
    expected = torch.where(condition[:, 1, None, None, None] > 0, expected.flip(2), expected)
    assert torch.equal(found[still], expected[still])
    assert not torch.isclose(found[~still], expected[~still]).flatten(1).all(1).any()
    assert found.abs().max() <= 1


@pytest.mark.parametrize("kind", AUGMENTATIONS[2:])
def test_a_map_is_the_inverse_of_the_transform(kind):
    """By the singular values of the transform, its angle, and a translation of an eighth of the sides."""
    a = draw_params(AugmentConfig(probability=1, kinds=[kind]), NAME, range(50))
    forward = torch.linalg.inv(a.maps(8, 16)[:, :, :2])
    values = torch.stack([2 ** (0.2 * (a.scale + stretch)) for stretch in (a.anisotropy, -a.anisotropy)], 1)
    assert torch.allclose(torch.linalg.svdvals(forward), values.sort(1, descending=True).values)
    if kind == "anisotropy":
        along = torch.stack((a.axis.cos(), a.axis.sin()), 1)[..., None]
        assert torch.allclose(forward @ along, 2 ** (0.2 * a.anisotropy)[:, None, None] * along)
    if kind == "rotation":
        assert torch.allclose(forward[:, 1, 0], a.rotation.sin())
    assert torch.allclose(a.maps(8, 16)[:, :, 2], -torch.stack((2 * a.right, a.down), 1))


@pytest.mark.slow
def test_the_network_learns_the_condition(store):
    plan = plan_of(store, train=OFTEN)
    state = new_state(plan, CPU)
    before = new_state(plan_of(store), CPU).network.state_dict()
    begun = dict(state.network.state_dict())
    assert not begun.pop("augmentation.weight").any()
    assert all(torch.equal(weight, before[name]) for name, weight in begun.items()), "drawn alike"
    run(state, store)
    assert state.network.augmentation.weight.abs().max() > 0


def test_a_network_without_such_a_layer_is_refused(store, monkeypatch):
    monkeypatch.setattr("diffusion.train.plan.load_reference", lambda reference: NetworkSpec)
    with pytest.raises(UsageError, match=r"train\.augment"):
        plan_of(store, train=OFTEN)


@pytest.mark.parametrize("side", [1, 2, 8, 24])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, -3), (-29, 41)])
def test_a_translation_by_whole_pixels_is_exact_and_mirrored_at_the_edges(side, right, down):
    x = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(1))
    there = NOTHING + torch.tensor([[0.0, 0.0, right], [0.0, 0.0, down]])
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (50, 50), (50, 50)), mode="symmetric")
    expected = expected[..., 50 + down :, 50 + right :][..., :side, :side]
    assert np.allclose(affine_resample(x, there[None]).numpy(), expected, atol=2e-5)


@given(angle=st.floats(-3.2, 3.2), scale=st.floats(0.6, 1.6), x_0=st.floats(-4, 4), y_0=st.floats(-4, 4))
def test_a_linear_function_is_resampled_exactly(angle, scale, x_0, y_0):
    """Sampling and filters are exact for linear functions, away from the mirrored edges."""
    line = torch.arange(24) - 23 / 2  # from the centre
    y, x = torch.meshgrid(line, line, indexing="ij")
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    seen_x, seen_y = cos * x - sin * y + x_0, sin * x + cos * y + y_0
    inside = torch.maximum(seen_x.abs(), seen_y.abs()) < 6
    inside &= torch.maximum(x.abs(), y.abs()) < 12 - 3 / scale
    maps = torch.tensor([[[cos, -sin, x_0], [sin, cos, y_0]]])
    found = affine_resample((0.03 * x - 0.05 * y + 0.2)[None, None], maps)[0, 0]
    expected = 0.03 * seen_x - 0.05 * seen_y + 0.2
    # Bilinear sampling has an error where the filter's delay does not cancel.
    assert torch.allclose(found[inside], expected[inside], atol=2e-3)
