"""Training in several processes: equal to one process to rounding, stopped and ended together.

Real processes over gloo on 127.0.0.1, started by the real command line.
"""

import re
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from diffusion.images.store import open_store
from diffusion.system.errors import DiffctlError
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed, translate_dist_errors
from diffusion.train.initial_state import new_state
from diffusion.train.loop import MAX_BAD_STEPS, Diverged, _record
from diffusion.train.observers import AsyncMetrics, Observer
from diffusion.train.trainer import share_state
from tests.conftest import run_python, write_params
from tests.helpers.training_process import (
    logged_steps,
    loss_curve,
    model_bytes,
    prepare,
    start,
    train_to_the_end,
    uninterrupted,
    wait_for_step,
)
from tests.helpers.trainings import CPU, plan_of, run

TRAIN = {"steps": 24, "batch_size": 7, "log_every": 1, "save_every": 4, "precision": "fp32"}


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] "
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:58604\nmore"), "closed by"),
        (RuntimeError("[unbound_buffer.cc:78] Timed out waiting 20000ms for recv to complete"), "Timed out"),
        (dist.DistStoreError("wait timeout after 5000ms, keys: /0//cpu//0/1"), "wait timeout"),
        (dist.DistBackendError(f"{NCCL}remote process exited or a network error"), "remote process"),
        (dist.DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4"), "timeout"),
        (torch.OutOfMemoryError("CUDA out of memory."), None),
        (RuntimeError(f"{GLOO}op.preamble.length <= op.nbytes. 100012 vs 12."), None),
        (dist.DistBackendError(f"{NCCL}unhandled cuda error\nncclUnhandledCudaError"), None),
    ],
)
def test_a_broken_connection_raises_rank_failed_and_other_errors_are_unchanged(error, cause):
    expected = (RankFailed, rf"\([^\n]*{cause}[^\n]*\)") if cause else (type(error), None)
    with pytest.raises(expected[0], match=expected[1]) as raised, translate_dist_errors():
        raise error
    assert cause or raised.value is error


def test_rank_zero_alone_ends_a_diverged_training(store):
    """On GPUs ranks notice at different steps, and one that left before rank 0 would count as failed."""
    state = new_state(plan_of(store, train=TRAIN), CPU)
    for rank, expected in (
        (1, nullcontext()),
        (0, pytest.raises(Diverged, match="non-finite steps in a row")),
    ):
        state.step, async_metrics = 1, AsyncMetrics()
        for _ in range(MAX_BAD_STEPS):
            async_metrics.add({"loss": torch.tensor(torch.nan)})
        with expected:
            _record(state, async_metrics, Observer(), ProcessGroup(CPU, rank, 2))


def test_a_rank_with_another_number_of_validation_images_is_refused(store, monkeypatch):
    """With `val_every: auto` its interval differs too."""
    sent: list[object] = []

    def exchange(values: list[object], source: int) -> None:
        sent.append(values[0])
        values[0] = sent[0]

    monkeypatch.setattr(dist, "broadcast_object_list", exchange)
    first, other = (new_state(plan_of(store, train={"val_images": count}), CPU) for count in (256, 64))
    share_state(first, ProcessGroup(CPU, 0, 2))
    with pytest.raises(DiffctlError, match="would train something else"):
        share_state(other, ProcessGroup(CPU, 1, 2))


@pytest.fixture
def prepared(project: Path) -> Path:
    prepare(project, **TRAIN)
    return project


def set_devices(folder: Path, devices: int, **changes: dict[str, Any]) -> None:
    train = {**TRAIN, "devices": devices, **changes.pop("train", {})}
    write_params(folder, train=train, **changes)


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Assert equal shared columns; those of validation losses depend on the observer."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        shared = {name: theirs[name] for name in ours if not name.startswith("val_")}
        assert {name: ours[name] for name in shared} == pytest.approx(shared, rel=2e-3)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the training's other processes."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline()[-2:] == ["stage", "train"]
    ]


def training_at(folder: Path, step: int) -> "tuple[subprocess.Popen[str], list[psutil.Process]]":
    process = start(folder)
    wait_for_step(folder, process, step)
    assert process.poll() is None, process.communicate()[1]
    return process, workers(process)


def ended(process: "subprocess.Popen[str]", others: list[psutil.Process]) -> str:
    """Wait until all have ended; return the standard error."""
    _, stderr = process.communicate(timeout=90)
    assert not psutil.wait_procs(others, timeout=30)[1]
    assert "Traceback" not in stderr
    return stderr


@pytest.mark.slow
@pytest.mark.long
def test_a_training_resumes_sharded_or_with_another_number_of_processes(prepared: Path) -> None:
    """Previews and validation losses of a sharded training use gathered networks."""
    changes = {"steps": 120, "preview_every": 60, "val_every": 20}
    set_devices(prepared, 1, train=changes)
    uninterrupted(prepared)
    expected = loss_curve(prepared)
    set_devices(prepared, 2, train=changes)
    process, others = training_at(prepared, 5)
    assert len(others) == 1
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM, saved" in ended(process, others)
    assert process.returncode == 143
    set_devices(prepared, 1, train=changes)
    process, others = training_at(prepared, logged_steps(prepared)[-1] + 5)
    assert others == []
    process.send_signal(signal.SIGINT)
    ended(process, others)
    set_devices(prepared, 2, train={**changes, "shard": True})
    stderr = train_to_the_end(prepared).stderr
    assert "resuming after step" in stderr
    assert "the training continues without" not in stderr
    found = loss_curve(prepared)
    assert_same_curve(found, expected)
    losses, wanted = ([row["val_loss"] for row in rows] for rows in (found, expected))
    assert losses == pytest.approx(wanted, rel=2e-3, nan_ok=True)
    previews = [
        {path.name for path in prepared.glob(f"{runs}/previews/*.png")}
        for runs in ("runs/train/*", "runs/kept-*")
    ]
    assert previews[0] == previews[1] != set()


@pytest.mark.long
def test_processes_end_together_and_resume_bitwise_equal(prepared: Path) -> None:
    """After the death of a worker rank 0 saves its last step; the workers die with rank 0."""
    changes = {"train": {"steps": 60}, "model": {"dropout": 0.2}}
    set_devices(prepared, 2, **changes)
    wanted = uninterrupted(prepared)
    process, others = training_at(prepared, 5)
    others[0].kill()
    stderr = ended(process, others)
    assert process.returncode == 1
    assert "process 1 of the training's 2 ended with SIGKILL" in stderr
    step = logged_steps(prepared)[-1]
    process, others = training_at(prepared, step + 6)
    process.kill()
    assert f"resuming after step {step} of 60" in ended(process, others)
    train_to_the_end(prepared)
    assert model_bytes(prepared) == wanted


# Rank 0, with a device that blocks for ever once another rank has failed.
BLOCKED = """
import atexit, sys, threading
import torch.distributed as dist
from diffusion.train.distributed.process_group import RankFailed, ProcessGroup
from diffusion.train.observers import AsyncMetrics
from diffusion.train.checkpoint.state_files import StateWriter

def hanging(call):
    def perhaps(*arguments, **named):
        if isinstance(sys.exception(), RankFailed):
            threading.Event().wait()
        return call(*arguments, **named)
    return perhaps

ProcessGroup.loss_blocks = True
for owner, name in ((AsyncMetrics, "arrived"), (StateWriter, "save"), (dist, "destroy_process_group")):
    setattr(owner, name, hanging(getattr(owner, name)))
atexit.register(threading.Event().wait)
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_if_the_device_is_blocked(prepared: Path) -> None:
    set_devices(prepared, 3, train={"steps": 60})
    process = start(prepared, BLOCKED)
    wait_for_step(prepared, process, 9)
    others = workers(process)
    others[1].kill()
    stderr = ended(process, others)
    assert process.returncode == 1
    assert stderr.count("of the training's 3 ended with SIGKILL") == 1
    set_devices(prepared, 1, train={"steps": 60})
    again = train_to_the_end(prepared).stderr
    (step,) = re.findall(r"resuming after step (\d+) of 60", again)
    assert int(step) % TRAIN["save_every"] == 0
    assert int(step) >= 8


@pytest.mark.slow
def test_torchrun_launches_two_processes_that_train_like_one(prepared: Path) -> None:
    """A batch of seven images is split into three and four."""
    model = {"dropout": 0.2}
    set_devices(prepared, 1, model=model)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_python(prepared, *torchrun, "-m", "cli.entry", "stage", "train")
    assert done.returncode == 0, done.stderr
    store = open_store(prepared / "data/prepared/train")
    seen = run(new_state(plan_of(store, train=TRAIN, model=model), CPU), store).seen
    assert_same_curve(loss_curve(prepared), [{"step": step, **values} for step, values in seen])
