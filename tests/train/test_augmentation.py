"""Augmentation: draws by the paper's table and by rows, the network's condition, no trace without it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.images.store import ImageStore, open_store
from diffusion.model.unet import UNet
from diffusion.process.time_samplers import Uniform
from diffusion.system.errors import UsageError
from diffusion.train.augmentation import augment, draw_params
from diffusion.train.batch import Batch, ImageLoader, draw_batch
from diffusion.train.plan import TrainPlan, plan_artefact
from diffusion.train.train_config import AUGMENTATIONS, AugmentConfig
from diffusion.train.train_step import new_state
from tests.helpers.networks import network_of, spec_of
from tests.helpers.trainings import plan_of, run
from tests.helpers.trajectories import process_of

CPU = torch.device("cpu")
NAME = ("train", 0, 0)
MANY = range(4000)
SURE = 1e-4  # significance level of the tests; the draws are the same in every run
OFTEN = {"augment": {"probability": 0.5}}


def drawn(**settings: Any) -> torch.Tensor:
    """Return (4000, 9) conditions of a network."""
    return draw_params(AugmentConfig(**settings), NAME, MANY).condition()


def squares(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batch_of(plan: TrainPlan, store: ImageStore, step: int = 0, share: slice = slice(None)) -> Batch:
    return draw_batch(plan, Uniform(process_of("cosine", 100)), ImageLoader(store, CPU), step, share)


@pytest.fixture
def store(digits_store: Path) -> ImageStore:
    return open_store(digits_store)


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


def test_draws_of_a_kind_do_not_depend_on_the_others():
    condition = drawn(probability=0.3)
    columns = {"x-flip": [0], "y-flip": [1], "scaling": [2], "rotation": [3, 4], "anisotropy": [5, 6]}
    for kind, own in {**columns, "translation": [7, 8]}.items():
        alone = drawn(probability=0.3, kinds=[kind])
        assert torch.equal(alone[:, own], condition[:, own])
        assert not alone[:, [column for column in range(9) if column not in own]].any()


def test_untransformed_images_are_unchanged_and_flips_are_exact():
    images = squares(400)
    found, condition = augment(images, AugmentConfig(), NAME, range(400))
    still = ~condition[:, 2:].any(1)
    assert 0.3 < still.float().mean() < 0.8
    expected = torch.where(condition[:, 0, None, None, None] > 0, images.flip(3), images)
    expected = torch.where(condition[:, 1, None, None, None] > 0, expected.flip(2), expected)
    assert torch.equal(found[still], expected[still])
    assert not torch.isclose(found[~still], expected[~still]).flatten(1).all(1).any()
    assert found.abs().max() <= 1


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("scaling", lambda a: (2 ** (0.2 * a.scale), 2 ** (0.2 * a.scale))),
        ("anisotropy", lambda a: (2 ** (0.2 * a.anisotropy), 2 ** (-0.2 * a.anisotropy))),
        ("rotation", lambda a: (torch.ones(50), torch.ones(50))),
    ],
)
def test_a_map_is_the_inverse_of_the_transform(kind, numbers):
    """By the singular values of the transform and its angle."""
    a = draw_params(AugmentConfig(probability=1, kinds=[kind]), NAME, range(50))
    forward = torch.linalg.inv(a.maps(8)[:, :, :2])
    expected = torch.stack([value.double() for value in numbers(a)], 1).sort(1, descending=True).values
    assert torch.allclose(torch.linalg.svdvals(forward), expected)
    if kind == "anisotropy":
        along = torch.stack((a.axis.cos(), a.axis.sin()), 1)[..., None]
        assert torch.allclose(forward @ along, 2 ** (0.2 * a.anisotropy)[:, None, None] * along)
    if kind == "rotation":
        assert torch.allclose(forward[:, 1, 0], a.rotation.sin())


def test_a_translation_has_a_standard_deviation_of_an_eighth():
    a = draw_params(AugmentConfig(probability=1, kinds=["translation"]), NAME, range(5))
    found = a.maps(16)
    assert torch.allclose(found[:, :, 2], -2 * torch.stack((a.right, a.down), 1))
    assert torch.equal(found[:, :, :2], torch.eye(2).double().expand(5, 2, 2))


def test_shares_and_microbatches_are_parts_of_the_batch(store):
    plan = plan_of(store, train={**OFTEN, "batch_size": 20})
    whole = batch_of(plan, store, 3)
    assert whole.augmentation is not None
    assert whole.augmentation.any()
    shares = [batch_of(plan, store, 3, slice(at, at + 7)) for at in (0, 7, 14)]
    for parts in (shares, list(whole.split(3)), [part for share in shares for part in share.split(2)]):
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([list(part)[index] for part in parts]), expected)


def test_augmentation_changes_no_other_draw(store):
    plain, condition = (batch_of(plan_of(store, train=train), store) for train in ({}, OFTEN))
    assert plain.augmentation is None
    for ours, theirs in zip(list(plain)[1:5], list(condition)[1:5], strict=True):
        assert torch.equal(ours, theirs)


def test_the_network_learns_the_condition(store):
    plan = plan_of(store, train=OFTEN)
    state = new_state(plan, CPU)
    before = new_state(plan_of(store), CPU).network.state_dict()
    begun = dict(state.network.state_dict())
    assert not begun.pop("augmentation.weight").any()
    assert all(torch.equal(weight, before[name]) for name, weight in begun.items()), "drawn alike"
    run(state, store)
    assert state.network.augmentation.weight.abs().max() > 0


def test_a_zero_condition_equals_a_network_without_the_layer():
    network = network_of(spec_of(augmented=True))
    plain = UNet(spec_of())
    weights = network.state_dict()
    condition = weights.pop("augmentation.weight")
    plain.load_state_dict(weights)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 70]), torch.tensor([0, 5])
    assert condition.any()
    assert torch.equal(network(x, t, labels), plain(x, t, labels))
    assert torch.equal(network(x, t, labels, torch.zeros(2, 9)), plain(x, t, labels))
    assert not torch.isclose(network(x, t, labels, torch.ones(2, 9)), plain(x, t, labels)).all()


def test_a_model_file_records_augmentation_only_if_used(store):
    metadata = plan_artefact(plan_of(store, train=OFTEN)).model_dump(mode="json")
    assert metadata["network"]["augmented"] is True
    assert metadata["train"]["augment"] == {"probability": 0.5, "kinds": list(AUGMENTATIONS)}
    plain = plan_artefact(plan_of(store)).model_dump(mode="json")
    assert "augmented" not in plain["network"]
    assert "augment" not in plain["train"]
    assert "augmentation.weight" not in UNet(spec_of()).state_dict()


def test_a_network_without_such_a_layer_is_refused(store, monkeypatch):
    from diffusion.model.network_registry import NetworkSpec

    monkeypatch.setattr("diffusion.train.plan.load_reference", lambda reference: NetworkSpec)
    with pytest.raises(UsageError, match=r"train\.augment"):
        plan_of(store, train=OFTEN)
