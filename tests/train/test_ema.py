"""A GPU's way to move averages: the CPU's but for rounding, by few kernels for any number of tensors."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.train import buckets
from diffusion.train.ema import ema_update, lerp_tensors
from tests.helpers.networks import network_of, spec_of
from tests.helpers.no_sync_tensors import DEVICE, NothingWaits


class Calls(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def tensors(count: int, seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 1 + number % 5, generator=draw) for number in range(count)]


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("most", [1, 20, 10**6])
def test_averages_move_as_a_lerp_moves_them(monkeypatch, part, most) -> None:
    monkeypatch.setattr(buckets, "BUCKET", most)
    averages, weights, step = tensors(20, 0), tensors(20, 1), torch.tensor(part)
    expected = [torch.lerp(one, other, step) for one, other in zip(averages, weights, strict=True)]
    before = [one.clone() for one in averages]
    lerp_tensors(averages, weights, step)
    for one, wanted, was in zip(averages, expected, before, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-6, atol=1e-6)
        assert part or torch.equal(one, was)


def test_twice_the_tensors_take_no_more_operations() -> None:
    found, part = [], torch.tensor(0.1)
    for count in (10, 20):
        averages, weights = tensors(count, 0), tensors(count, 1)
        with Calls() as calls, torch.no_grad():
            lerp_tensors(averages, weights, part)
        found.append(calls.count)
    assert found == [3, 3]


def test_an_update_of_the_average_waits_for_nothing() -> None:
    ema, network = network_of(spec_of()).to(DEVICE), network_of(spec_of()).to(DEVICE)
    with NothingWaits():
        ema_update(ema, network, 0.99, torch.empty((), dtype=torch.bool, device=DEVICE))
