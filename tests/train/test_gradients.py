"""A step's gradient: micro-batches by the memory, clipping, compilation, and no synchronisation."""

import sys
import warnings
from typing import Any

import pytest
import torch

from diffusion.images.store import ImageStore
from diffusion.process.objective import Batch
from diffusion.system.devices import is_out_of_memory
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.memory import cgroup_limit
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan
from diffusion.train.step_memory import STEP_SHARE, OutOfMemory, device_memory, fitting_microbatch, step_bytes
from diffusion.train.train_state import TrainState
from diffusion.train.train_step import accumulate_gradients, train_step
from tests.helpers.networks import spec_of
from tests.helpers.no_sync_tensors import nothing_waits
from tests.helpers.process_pair import TRAININGS
from tests.helpers.trainings import CPU, plan_of

FP32 = {"precision": "fp32", "p_uncond": 0.0}
BETA_1 = 0.9  # AdamW's: after one step the first moment is (1 − β₁) times the gradient
SLOW = ("vlb", "velocity", "checkpoints", "dit")  # "all" covers the other trainings
PARTS = ["simple", "all", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def new_step(store: ImageStore, **train: Any) -> tuple[TrainPlan, TrainState, Batch]:
    """Return a new training and its first batch."""
    plan = plan_of(store, train={**FP32, **train})
    state = new_state(plan, CPU)
    return plan, state, draw_batch(plan, state.time_sampler, ImageLoader(store, CPU), 0)


def passes_of(state: TrainState, device: torch.device = CPU) -> ForwardPasses:
    return ForwardPasses(state.plan, state.network, state.objective, ProcessGroup(device))


def gradient(plan: TrainPlan, state: TrainState, batch: Batch) -> list[torch.Tensor]:
    state.network.zero_grad()
    accumulate_gradients(passes_of(state), batch, 0)
    return [parameter.grad.clone() for parameter in state.network.parameters()]


def refuse_more_than(state: TrainState, most: int) -> None:
    """Raise out-of-memory errors within the network for more than `most` images."""

    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    state.network.middle.register_forward_pre_hook(refuse)


@pytest.mark.parametrize(("fits", "found"), [(8, 8), (7, 4), (3, 2), (1, 1)])
def test_auto_halves_the_microbatch_until_it_fits(store, fits, found):
    plan, state, batch = new_step(store, batch_size=8, microbatch=found)
    expected = gradient(plan, state, batch)
    plan, state, batch = new_step(store, batch_size=8, microbatch="auto")
    refuse_more_than(state, fits)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = gradient(plan, state, batch)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(warning.category is DiffctlWarning for warning in caught) == (8 // found).bit_length() - 1


@pytest.mark.filterwarnings("ignore::diffusion.system.errors.DiffctlWarning")
@pytest.mark.parametrize("microbatch", [4, None, "auto"])
def test_out_of_memory_is_an_error_with_advice(store, microbatch):
    plan, state, batch = new_step(store, batch_size=8, microbatch=microbatch)
    refuse_more_than(state, 0)
    with pytest.raises(DiffctlError, match=r"lower train\.microbatch"):
        gradient(plan, state, batch)


def test_out_of_memory_with_a_loss_of_the_whole_batch_suggests_a_smaller_batch(store):
    plan = plan_of(store, train=FP32, process={"loss": "contrastive", "variance": "small"})
    state = new_state(plan, CPU)
    refuse_more_than(state, 0)
    with pytest.raises(OutOfMemory, match=r"lower train\.batch_size, make"):
        gradient(plan, state, draw_batch(plan, state.time_sampler, ImageLoader(store, CPU), 0))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
    ],
)
def test_out_of_memory_errors_of_each_library_are_recognised(message, expected):
    assert is_out_of_memory(RuntimeError(message)) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "7000"}, 7000),
        ("0::/a/b", {"a/memory.max": "5000", "a/b/memory.max": "7000"}, 5000),
        ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "max"}, sys.maxsize),
        ("0::/", {"memory.max": "7000"}, 7000),
        ("0::/../other", {"memory.max": "7000"}, 7000),
        ("5:memory:/a\n4:cpu,cpuacct:/a\n0::/", {"memory/a/memory.limit_in_bytes": "7000"}, 7000),
        ("5:memory:/docker/1\n0::/", {"memory/memory.limit_in_bytes": "7000"}, 7000),
        ("0::/a/b", {}, sys.maxsize),
        (None, {"memory.max": "7000"}, sys.maxsize),
    ],
)
def test_a_containers_memory_is_that_of_its_control_groups(tmp_path, monkeypatch, own, files, expected):
    for name, limit in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{limit}\n")
    if own is not None:
        (tmp_path / "own").write_text(f"{own}\n")
    found = cgroup_limit(tmp_path / "groups", tmp_path / "own")
    assert found == expected
    total, _ = device_memory(CPU)
    monkeypatch.setattr("diffusion.system.memory.cgroup_limit", lambda: found)
    assert device_memory(CPU)[0] == min(total, expected)
    assert device_memory(CPU)[1] <= expected


@pytest.mark.parametrize(("images", "fits"), [(1, 1), (7, 8), (100, 99), (100, 26), (13, 0)])
def test_the_cpus_microbatch_is_the_largest_halving_that_fits(images, fits):
    spec = spec_of()
    total = int(step_bytes(spec, fits) / STEP_SHARE) + 1 if fits else 0
    found = fitting_microbatch(spec, images, total)
    assert found <= max(fits, 1)
    size = images
    while size > found:
        assert size > fits
        size = -(-size // 2)
    assert size == found


def norms_of_a_step(store: ImageStore, **train: float | None) -> tuple[float, float]:
    """Return the reported norm of the first step, and that of the gradient in the optimiser."""
    _, state, batch = new_step(store, **train)
    means = train_step(state, passes_of(state), batch)
    moments = [values["exp_avg"].flatten() for values in state.optimizer.state.values()]
    return float(means["grad_norm"]), float(torch.cat(moments).norm()) / (1 - BETA_1)


def test_the_gradient_is_clipped_to_the_bound_and_its_norm_before_is_reported(store):
    reported, seen = norms_of_a_step(store, grad_clip=None)
    assert seen == pytest.approx(reported, rel=1e-5)
    third = norms_of_a_step(store, grad_clip=reported / 3)
    assert third == pytest.approx((reported, reported / 3), rel=1e-4)
    assert norms_of_a_step(store, grad_clip=reported * 3) == pytest.approx((reported,) * 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_step_moves_nothing_to_the_host(store, name, monkeypatch):
    """Meta tensors cannot be copied to another device."""
    meta, own = torch.device("meta"), torch.Generator
    changes = TRAININGS[name]
    train = {**changes["train"], "precision": "fp32", "batch_size": 8, "microbatch": 3}
    plan = plan_of(store, **{**changes, "train": train})
    state = new_state(plan, CPU)  # loads modules that need torch's own Generator
    monkeypatch.setattr(torch, "Generator", lambda device=CPU: own(CPU))  # the meta device has none
    for part in ("network", "ema", "ema_profiles"):
        setattr(state, part, getattr(state, part).to(meta))
    monkeypatch.setattr(state.optimizer, "step", lambda: None)  # the fused kernel has no meta version
    passes, data = passes_of(state, meta), ImageLoader(store, CPU)
    data.device, data.resident = meta, torch.empty(len(store), 1, 8, 8, dtype=torch.uint8, device=meta)
    with nothing_waits():
        batch = draw_batch(plan, state.time_sampler, data, 0)
        means = train_step(state, passes, batch)
    assert {mean.device for mean in means.values()} == {meta}
    assert (batch.augmentation is None) == ("augment" not in train)


def test_a_failure_of_torch_compile_trains_without_compilation(store, monkeypatch):
    plan, state, batch = new_step(store)
    expected = gradient(plan, state, batch)
    plan, state, batch = new_step(store, compile=True)

    def refuse(*_, **__):
        raise RuntimeError("torch.compile is not supported on Python 4\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(DiffctlWarning, match=r"\(torch.compile is not supported on Python 4\)"):
        ours = gradient(plan, state, batch)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
