"""Muon: orthogonal updates against torch's Muon, AdamW for all else. Any optimiser of torch in a training."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

from diffusion.images.store import ImageStore
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.run_dir import restore_state
from diffusion.train.initial_state import new_state
from diffusion.train.optimizers import builders
from diffusion.train.optimizers.builders import Muon, matrix_parameters, orthogonalize
from diffusion.train.optimizers.optimizer_options import MuonOptions
from diffusion.train.train_state import TrainState
from tests.helpers.trainings import CPU, assert_same, plan_of, run, run_until

RATE = 0.01


def group_of(weights: Iterable[nn.Parameter], decay: float = 0.01) -> dict[str, Any]:
    return {"params": list(weights), "lr": RATE, "weight_decay": decay}


def test_a_zero_matrix_stays_zero_and_matrices_are_independent():
    matrices = torch.stack([torch.zeros(8, 12), torch.randn(8, 12)])
    both = orthogonalize(matrices)
    assert torch.equal(both[0], torch.zeros(8, 12))
    torch.testing.assert_close(both[1], orthogonalize(matrices[1:])[0])
    torch.testing.assert_close(both.mT, orthogonalize(matrices.mT))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 48)])
def test_a_step_equals_torchs_muon_to_bf16(shape, scale):
    source = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(shape, generator=source.manual_seed(0))) for _ in range(2))
    mine = Muon([group_of([ours], 0.1)], [ours], MuonOptions())
    known = torch.optim.Muon(
        [theirs], lr=RATE, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    moved = ours.detach().clone()
    for _ in range(5):
        gradient = scale * torch.randn(shape, generator=source)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        known.step()
    moved -= ours.detach()
    assert (ours - theirs).norm() < 0.01 * moved.norm()


def test_other_parameters_use_adamw_and_a_convolution_is_a_matrix():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Embedding(8, 9), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 2, 3)
    )
    classes, first, conv, last = network
    assert matrix_parameters(network) == [conv.weight]  # the last one's two rows are too few
    others = (classes.weight, first.weight, first.bias, conv.bias, last.weight)
    same = nn.Parameter(conv.weight.detach().flatten(1).clone())
    copies = [nn.Parameter(weight.detach().clone()) for weight in others]
    mine = Muon([group_of(network.parameters())], matrix_parameters(network), MuonOptions())
    flat = Muon([group_of([same])], [same], MuonOptions())
    adam = torch.optim.AdamW(copies, lr=RATE, weight_decay=0.01, fused=True)
    for _ in range(3):
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        same.grad = conv.weight.grad.flatten(1).clone()
        for copy, weight in zip(copies, others, strict=True):
            copy.grad = weight.grad.clone()
        for optimizer in (mine, flat, adam):
            optimizer.step()
    assert torch.equal(conv.weight.flatten(1), same)
    for copy, weight in zip(copies, others, strict=True):
        assert torch.equal(weight, copy)


def state_with(store: ImageStore, make: Any) -> TrainState:
    """Return a new state with this optimiser, whose second step is NaN."""
    state = new_state(
        plan_of(store, train={"steps": 3, "lr": 1e-3, "batch_size": 2, "microbatch": None}), CPU
    )
    groups = state.optimizer.param_groups
    state.optimizer = make([{name: group[name] for name in ("params", "scale")} for group in groups])
    state.network.register_forward_hook(lambda *given: given[2] * (math.nan if state.step == 1 else 1.0))
    return state


@pytest.mark.parametrize(
    "make",
    [partial(optim.SGD, momentum=0.9), partial(optim.SGD, momentum=0.9, fused=True), optim.NAdam, optim.ASGD,
     optim.Adafactor],
    ids=["sgd", "fused sgd", "nadam", "asgd", "adafactor"],
)  # fmt: skip
def test_any_optimiser_of_torch_skips_a_step_and_resumes_bitwise(store: ImageStore, make: Any) -> None:
    whole, first, second = (state_with(store, make) for _ in range(3))
    run(whole, store)
    run_until(first, store, 2)
    second.restore(first.saved())
    run(second, store)
    assert_same(second, whole)
    assert whole.skipped == 1
    assert all(bool(weight.isfinite().all()) for weight in whole.tensors().values())


def test_a_state_of_muon_with_other_matrices_is_refused(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(store, train={"optimizer": "muon"})
    state = new_state(plan, CPU)
    monkeypatch.setattr(builders, "MIN_MATRIX_SIDE", 16)
    other = new_state(plan, CPU)
    for one in (state, other):
        run_until(one, store, 1)
    for one, saved in ((state, other.saved()), (other, state.saved())):
        restore_state(one, one.saved(), "it")
        with pytest.raises(DiffctlError, match=r"it cannot be restored .*Muon updates other"):
            restore_state(one, saved, "it")
