"""Dropout masks: their distribution, and their independence of how a batch is computed."""

import itertools
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from diffusion.images.store import ImageStore
from diffusion.model.classifier import Classifier
from diffusion.model.dit import DiT
from diffusion.model.layers import Dropout
from diffusion.model.unet import UNet
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.forward_passes import DropoutMasks
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan
from diffusion.train.train_state import TrainState
from tests.helpers.networks import randomise
from tests.helpers.process_pair import SMALL_DIT
from tests.helpers.trainings import CPU, plan_of
from tests.train.test_gradients import gradient, refuse_more_than

P = 0.3
SURE = 1e-4  # significance level of the tests; the draws are the same in every run


def described(store: ImageStore, model: dict[str, Any] | None = None, **train: Any) -> TrainPlan:
    settings = {"precision": "fp32", "p_uncond": 0.0, "batch_size": 8, "microbatch": None, **train}
    return plan_of(store, model={"dropout": P, **(model or {})}, train=settings)


def begun(plan: TrainPlan) -> TrainState:
    state = new_state(plan, CPU)
    randomise(state.network)  # its zero-initialised convolutions would hide the masks
    return state


def flat_gradient(store: ImageStore, state: TrainState) -> Tensor:
    """Return all gradients of step 0 in one row."""
    batch = draw_batch(state.plan, state.time_sampler, ImageLoader(store, CPU), 0)
    return torch.cat([part.flatten() for part in gradient(state.plan, state, batch)])


@pytest.mark.filterwarnings("ignore::diffusion.system.errors.DiffctlWarning")
@pytest.mark.parametrize(
    ("changes", "fits"),
    [({"microbatch": 1}, 8), ({"microbatch": 3}, 8), ({"microbatch": "auto"}, 3), ({}, 8)],
    ids=["1", "3", "out of memory", "checkpointing"],
)
def test_masks_do_not_depend_on_microbatches_retries_and_checkpointing(store, changes, fits):
    whole = flat_gradient(store, begun(described(store)))
    plan = described(store, {"gradient_checkpointing": not changes}, **changes)
    state, before = begun(plan), torch.get_rng_state()
    refuse_more_than(state, fits)
    found = flat_gradient(store, state)
    assert torch.allclose(found, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
    assert torch.equal(torch.get_rng_state(), before)


def masks_at(masks: DropoutMasks, network: UNet | Classifier | DiT, step: int, rows: slice) -> list[Tensor]:
    """Return each layer's mask of these rows, (B, numbers of a row) bool."""
    seen: list[Tensor] = []
    masks.draw(step, CPU)
    masks.select_rows(rows)
    layers = [layer for layer in network.modules() if isinstance(layer, Dropout)]
    look = [layer.register_forward_hook(lambda _, given, out: seen.append(given[0])) for layer in layers]
    x, t = torch.zeros(rows.stop - rows.start, 1, 8, 8), torch.zeros(rows.stop - rows.start).long()
    network.train()(x, t, *([t] if network.spec.num_classes else []))
    for hook in look:
        hook.remove()
    return [(layer(torch.ones_like(x)) != 0).flatten(1) for layer, x in zip(layers, seen, strict=True)]


def agreement(one: Tensor, other: Tensor) -> float:
    """Return the covariance of two masks in standard deviations."""
    size = min(len(one), len(other))
    a, b = (mask[:size].double() - (1 - P) for mask in (one, other))
    return float((a * b).sum()) / (size**0.5 * P * (1 - P))


@pytest.mark.parametrize(("kind", "model"), [(UNet, {}), (Classifier, {}), (DiT, SMALL_DIT)])
def test_masks_are_independent_bernoulli_bits(store, kind, model):
    """Bits have probability 1 − p and are independent between rows and layers."""
    plan = described(store, model, batch_size=20)
    network = kind(plan.network)
    layers = masks_at(DropoutMasks(network, plan, "dropout", network), network, 0, slice(0, 20))
    for kept in layers:
        for row in kept:
            assert stats.binomtest(int(row.sum()), len(row), 1 - P).pvalue > SURE / 20
        for one, other in itertools.pairwise(kept):
            assert abs(agreement(one, other)) < 5
    for kept, later in itertools.pairwise(layers):
        assert all(abs(agreement(*rows)) < 5 for rows in zip(kept, later, strict=True))


def test_masks_depend_on_purpose_step_and_row(store):
    plan = described(store)
    network = UNet(plan.network)
    masks = DropoutMasks(network, plan, "dropout", network)
    first = masks_at(masks, network, 5, slice(0, 8))
    part = masks_at(masks, network, 5, slice(2, 5))
    later = masks_at(masks, network, 6, slice(0, 8))
    other = masks_at(DropoutMasks(network, plan, "another", network), network, 5, slice(0, 8))
    assert all(torch.equal(a[2:5], b) for a, b in zip(first, part, strict=True))
    for masks_of_another in (later, other):
        assert not any(torch.equal(a, b) for a, b in zip(first, masks_of_another, strict=True))


def test_layers_may_be_called_in_another_order_than_they_are_registered(store):
    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = Dropout(P), Dropout(P)
            self.expand, self.head = nn.Conv2d(1, 400, 1), nn.Conv2d(400, 1, 1)

        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.last(self.head(self.first(self.expand(x))))

    network, plan = Reordered(), described(store)
    masks = DropoutMasks(network, plan, "dropout", network)
    masks.draw(0, CPU)
    masks.select_rows(slice(8))
    assert network(torch.randn(8, 1, 8, 8), torch.zeros(8), None).shape == (8, 1, 8, 8)


def test_kept_values_are_scaled_and_masks_do_not_depend_on_the_memory_layout():
    layer, x, size = Dropout(P), torch.randn(4, 3, 40, 40), 3 * 40 * 40
    layer.tape = torch.rand(2 * size, generator=torch.Generator().manual_seed(0)) >= P
    layer.starts = torch.tensor([0, size, 7, 7])
    out = layer(torch.ones_like(x))
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - P)])
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(out[2], out[3])
    assert not torch.equal(out[0], out[1])
    last = layer(x.to(memory_format=torch.channels_last))
    assert torch.equal(last, layer(x))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.slow
def test_a_compiled_network_uses_new_masks_without_recompilation(store):
    plan = described(store)
    network = UNet(plan.network)
    randomise(network)
    masks = DropoutMasks(network, plan, "dropout", network)
    torch.compiler.reset()
    compiled = torch.compile(network.train(), fullgraph=True, backend="aot_eager", dynamic=False)
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([3, 70, 9]), torch.tensor([0, 5, 1])
    seen = []
    for step in range(3):
        masks.draw(step, CPU)
        masks.select_rows(slice(step, step + 3))
        seen.append(network(x, t, labels))
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            assert torch.allclose(compiled(x, t, labels), seen[-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[0], seen[1], rtol=1e-2)
