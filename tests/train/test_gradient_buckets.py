"""Sums of gradients that begin during the backward pass: the same buckets in the same order, each once."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffusion.images.store import open_store
from diffusion.system.errors import DiffctlWarning
from diffusion.train.batch import draw_batch
from diffusion.train.distributed.gradient_buckets import OverlappedSums
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.loader import ImageLoader
from diffusion.train.loop import new_state
from tests.helpers.trainings import plan_of
from tests.train.test_gradients import FP32

CPU = torch.device("cpu")


class Twin(ProcessGroup):
    """One of two processes whose other one has the same gradients: a sum doubles, which is exact."""

    def __init__(self) -> None:
        super().__init__(CPU, 0, 2)
        object.__setattr__(self, "sent", [])

    def begin_sum(self, tensor: Tensor):
        self.sent.append(tensor.clone())
        return lambda: tensor.mul_(2)

    def all_reduce(self, tensors) -> None:
        for tensor in tensors:
            tensor.mul_(2)


class Parts(nn.Module):
    """Numbers that a loss may ask for in any order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.full((2, 3), float(number)) for number in range(count))


@given(order=st.permutations(range(6)), idle=st.sets(st.integers(0, 5), max_size=5), size=st.integers(1, 40))
def test_the_order_is_the_parameters_own_whatever_comes_first(order, idle, size):
    network, group = Parts(6), Twin()
    sums = OverlappedSums(network, group, size)
    asked = [number for number in order if number not in idle]
    with sums.sending():
        for number in asked:  # each pass brings one gradient
            (network.parts[number] * (number + 1)).sum().backward()
    sums.finish()
    sent = torch.cat([bucket.flatten() for bucket in group.sent])
    expected = [float(number + 1) for number in reversed(range(6)) if number not in idle]
    assert sent.tolist() == [value for value in expected for _ in range(6)]
    for number, part in enumerate(network.parts):
        assert (part.grad is None) == (number in idle), "what has no gradient is not decayed either"
        if part.grad is not None:
            assert torch.equal(part.grad, torch.full((2, 3), 2.0 * (number + 1)))


def test_a_sum_lies_in_memory_as_its_parameter_does():
    network, group = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), Twin()
    sums, x = OverlappedSums(network, group), torch.randn(2, 4, 5, 5)
    with sums.sending():
        network(x).square().sum().backward()
    sums.finish()
    assert network.weight.grad.is_contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(4, 6, 3)
    plain.load_state_dict(network.state_dict())
    plain(x).square().sum().backward()
    assert torch.allclose(network.weight.grad, 2 * plain.weight.grad, rtol=1e-4, atol=1e-4)


def gradients_of(store_path: Path, group: ProcessGroup, monkeypatch, fail: bool = False, **train):
    """The gradient that the group's share of step 0 gives, in several buckets."""
    monkeypatch.setattr("diffusion.train.distributed.gradient_buckets.SENT", 5_000)
    store = open_store(store_path)
    plan = plan_of(store, train={**FP32, "batch_size": 8, **train})
    state = new_state(plan, CPU)
    share = GradientAccumulator(plan, state.network, group)
    if fail:
        fail_once(state.network.stem.weight)
    share(draw_batch(plan, state.timesteps, ImageLoader(store, CPU), 0, share.share), 0)
    return [parameter.grad for parameter in state.network.parameters()]


def fail_once(parameter: nn.Parameter) -> None:
    """Let the memory not suffice when, in the last of two micro-batches, nearly all gradients are there."""
    passes = []

    def look(gradient: Tensor) -> None:
        passes.append(gradient)
        if len(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    parameter.register_hook(look)


def test_the_buckets_sum_to_what_is_summed_at_once(digits_store, monkeypatch):
    """And before the pass has ended: no bucket waits for those that come after it."""
    expected = gradients_of(digits_store, Alone(), monkeypatch, microbatch=2)
    group = Twin()
    found = gradients_of(digits_store, group, monkeypatch, microbatch=2)
    assert len(group.sent) > 3
    assert all(torch.equal(ours, 2 * theirs) for ours, theirs in zip(found, expected, strict=True))


class Alone(Twin):
    """The same share, of which nothing is summed."""

    def begin_sum(self, tensor: Tensor):
        return lambda: None


def test_a_bucket_is_under_way_while_the_pass_runs():
    network, group, at = Parts(4), Twin(), []
    sums = OverlappedSums(network, group, 6)
    network.parts[0].register_hook(lambda gradient: at.append(len(group.sent)))
    with sums.sending():
        chained = network.parts[0]
        for part in list(network.parts)[1:]:
            chained = chained * part
        chained.sum().backward()
    assert at == [2], "the first product's two gradients, of which this is one, are the last to come"
    sums.finish()
    assert len(group.sent) == 4


def test_only_the_last_micro_batch_is_sent():
    network, group = Parts(3), Twin()
    sums = OverlappedSums(network, group, 6)
    for _ in range(3):
        network.parts[1].sum().backward()
    assert group.sent == []
    with sums.sending():
        sum(part.sum() for part in network.parts).backward()
    sums.finish()
    assert [float(bucket[0]) for bucket in group.sent] == [1.0, 4.0, 1.0]


def test_a_shortage_after_buckets_were_sent_sends_none_of_them_again(digits_store, monkeypatch):
    """What was sent is this share's whole gradient, so that the others never hear of the second try."""
    whole = Twin()
    expected = gradients_of(digits_store, whole, monkeypatch, microbatch=2)
    group = Twin()
    monkeypatch.setattr(GradientAccumulator, "_first_microbatch", lambda *_: 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = gradients_of(digits_store, group, monkeypatch, fail=True, microbatch="auto")
    assert any(issubclass(one.category, DiffctlWarning) for one in said)
    assert len(group.sent) == len(whole.sent)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 2])
def test_what_does_not_learn_is_in_no_bucket(frozen):
    network, group = Parts(3), Twin()
    network.parts[frozen].requires_grad_(False)
    sums = OverlappedSums(network, group, 6)
    with sums.sending():
        sum(part.sum() for part in network.parts).backward()
    sums.finish()
    assert len(group.sent) == 2
    assert network.parts[frozen].grad is None
