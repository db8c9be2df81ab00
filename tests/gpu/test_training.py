"""Trainings on a GPU: resume, out of memory, compilation, data on the host, and several ranks."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diffusion.images.store import ImageStore
from diffusion.system.errors import DiffctlWarning
from diffusion.train import batch
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.checkpoint.state_files import SavedState, newest_state
from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import new_state
from diffusion.train.train_state import TrainState
from diffusion.train.train_step import accumulate_gradients
from tests.gpu.devices import DEVICES, LONG_ON_CPU, SLOW_ON_CPU, exactly, waiting_fails
from tests.helpers import process_pair
from tests.helpers.trainings import plan_of, restore, run, run_until
from tests.train.test_gradients import refuse_more_than

FP32 = {"precision": "fp32", "tf32": False, "p_uncond": 0.0}


def begun(store: ImageStore, device: torch.device, **changes: dict[str, Any]) -> TrainState:
    """Return step 0 of a small training."""
    return new_state(plan_of(store, **changes), device)


def curve(state: TrainState, store: ImageStore) -> list[tuple[int, float]]:
    """Train to the end; return the losses by step."""
    return [(step, values["loss"]) for step, values in run(state, store).seen]


def assert_close(found: list[tuple[int, float]], wanted: list[tuple[int, float]], far: float) -> None:
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=far)


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_resume_from_a_state_written_in_the_background(device, store, tmp_path) -> None:
    """The written state is that between two steps, although the next ones started meanwhile."""
    changes = {"train": {**FP32, "save_every": 3, "log_every": 1}}
    with exactly(device):
        wanted = curve(begun(store, device, **changes), store)
        first, was = begun(store, device, **changes), {}
        with open_run(tmp_path, "a") as folder:

            def save(saved: SavedState) -> None:
                folder.writer.save(saved)
                was[saved.values.step] = {name: one.cpu().clone() for name, one in saved.tensors.items()}

            with folder.writer.in_background():
                run_until(first, store, 8, save)
            saved = newest_state(folder.folder)
            assert saved is not None
            assert saved.values.step == 8
            assert all(torch.equal(saved.tensors[name], value) for name, value in was[8].items())
            again = begun(store, device, **changes)
            restore(folder, again)
            rest = curve(again, store)
    assert_close(rest, wanted[8:], 0 if device.type == "cpu" else 1e-3)


def gradient(state: TrainState, store: ImageStore, device: torch.device) -> list[torch.Tensor]:
    """Return the gradient of step 0."""
    batch = draw_batch(state.plan, state.time_sampler, ImageLoader(store, device), 0)
    accumulate_gradients(
        ForwardPasses(state.plan, state.network, state.objective, ProcessGroup(device)), batch, 0
    )
    return [parameter.grad.clone() for parameter in state.network.parameters()]


@contextmanager
def memory_for(device: torch.device, state: TrainState, images: int, peaks: list[int]) -> Iterator[None]:
    """Limit the memory to a pass of `images`: on a GPU to the mean of the two `peaks`."""
    if device.type == "cpu":
        refuse_more_than(state, images)
        yield
        return
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_halved_microbatch_gives_the_same_gradient(device, store) -> None:
    images, found, peaks = 8 if device.type == "cpu" else 8192, [], []
    with exactly(device):
        for microbatch in (images, images // 2):
            state = begun(store, device, train={**FP32, "batch_size": images, "microbatch": microbatch})
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            found.append(gradient(state, store, device))
            peaks.append(torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0)
            del state
        state = begun(store, device, train={**FP32, "batch_size": images, "microbatch": "auto"})
        short = memory_for(device, state, images // 2, peaks)
        with short, pytest.warns(DiffctlWarning, match=f"micro-batches of {images // 2} images"):
            ours = gradient(state, store, device)
    for a, b in zip(ours, found[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("device", LONG_ON_CPU)
def test_a_compiled_training_is_equal_to_rounding(device, store) -> None:
    short = {**FP32, "steps": 4, "log_every": 1}
    torch.compiler.reset()
    with exactly(device), warnings.catch_warnings(category=DiffctlWarning):
        warnings.simplefilter("error", DiffctlWarning)  # compilation failed
        found = [
            curve(begun(store, device, train={**short, "compile": compiles}), store)
            for compiles in (True, False)
        ]
    assert_close(*found, 1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_data_on_the_host_gives_the_same_training(device, store, monkeypatch) -> None:
    """Batches come through pinned memory, as for a data set that is too large for the device."""
    short = {**FP32, "steps": 5, "log_every": 1}
    with exactly(device):
        there = curve(begun(store, device, train=short), store)
        monkeypatch.setattr(batch, "DEVICE_SHARE", 0.0)
        assert not ImageLoader(store, device).resident
        assert_close(curve(begun(store, device, train=short), store), there, 1e-4)


# Several ranks: sums by NCCL, and trainings of two, unsharded and sharded.


@contextmanager
def alone_but_joined(device: torch.device, world: int = 1) -> Iterator[ProcessGroup]:
    """Yield a group of this process alone that counts as rank 0 of `world`: collectives run with one rank."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    with join_group(ProcessGroup(device), store):
        yield ProcessGroup(device, 0, world)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_gradients_are_exact_and_asynchronous(device, store, monkeypatch) -> None:
    """The sums are in many buckets, and the host waits for none."""
    monkeypatch.setattr(process_group, "BUCKET", 20_000)
    found = []
    with exactly(device), alone_but_joined(device, world=2) as two:
        for group in (two, ProcessGroup(device)):
            state = begun(store, device, train={**FP32, "batch_size": 8, "microbatch": 2})
            plan, data = state.plan, ImageLoader(store, device)
            passes = ForwardPasses(plan, state.network, state.objective, group)
            passes.share = two.share(8)
            first, second = (
                draw_batch(plan, state.time_sampler, data, step, passes.share) for step in range(2)
            )
            accumulate_gradients(passes, first, 0)  # initialises NCCL's connections and cuDNN's plans
            state.network.zero_grad()
            with waiting_fails(device):
                accumulate_gradients(passes, second, 1)
            found.append([parameter.grad.clone() for parameter in state.network.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize(
    "changes", [process_pair.CHANGES, process_pair.SHARDED], ids=["unsharded", "sharded"]
)
@pytest.mark.parametrize("device", LONG_ON_CPU)  # tests/train trains them on a CPU
def test_two_processes_train_like_one(device, changes, digits_store: Path, tmp_path: Path) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    job = process_pair.Job(tmp_path / "runs", changes)
    (found,) = process_pair.trained_in_turn(digits_store, 2, [job], device.type)
    process_pair.assert_close(found, process_pair.alone(digits_store, device=device))
