"""Several ranks on GPUs: sums by NCCL, and trainings of two, unsharded and sharded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from diffusion.images.store import open_store
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.gradients import GradientAccumulator
from tests.gpu.devices import DEVICES, LONG_ON_CPU, exactly, waiting_fails
from tests.gpu.test_training import FP32, begun
from tests.helpers.process_pair import CHANGES, SHARDED, alone, assert_close, trained


@contextmanager
def alone_but_joined(device: torch.device, world: int = 1) -> Iterator[ProcessGroup]:
    """Yield a group of this process alone that counts as rank 0 of `world`: collectives run with one rank."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    with join_group(ProcessGroup(device), store):
        yield ProcessGroup(device, 0, world)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_gradients_are_exact_and_asynchronous(device, digits_store, monkeypatch) -> None:
    """The sums are in many buckets, and the host waits for none."""
    monkeypatch.setattr(process_group, "BUCKET", 5_000)
    store, found = open_store(digits_store), []
    with exactly(device), alone_but_joined(device, world=2) as two:
        for group in (two, ProcessGroup(device)):
            state = begun(store, device, train={**FP32, "batch_size": 8, "microbatch": 2})
            plan, data = state.plan, ImageLoader(store, device)
            gradients = GradientAccumulator(plan, state.network, group)
            first, second = (
                draw_batch(plan, state.time_sampler, data, step, two.share(8)) for step in range(2)
            )
            gradients(first, 0)  # initialises NCCL's connections and cuDNN's plans
            state.network.zero_grad()
            with waiting_fails(device):
                gradients(second, 1)
            found.append([parameter.grad.clone() for parameter in state.network.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("changes", [CHANGES, SHARDED], ids=["unsharded", "sharded"])
@pytest.mark.parametrize("device", LONG_ON_CPU)  # tests/train trains them on a CPU
def test_two_processes_train_like_one(device, changes, digits_store: Path, tmp_path: Path) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    found = trained(digits_store, tmp_path / "runs", 2, changes, kind=device.type)
    assert_close(found, alone(digits_store))
