"""Training in several processes: equal to one process to rounding, stopped and ended together.

Real processes over gloo on 127.0.0.1, started by the real command line.
"""

import csv
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from diffusion.images.store import open_store
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.distributed.process_group import (
    BUCKET,
    ProcessGroup,
    RankFailed,
    buckets,
    translate_dist_errors,
)
from diffusion.train.loop import MAX_BAD_STEPS, _record, train
from diffusion.train.observers import AsyncMetrics, Observer
from diffusion.train.train_step import new_state
from tests.conftest import environment, write_params
from tests.helpers.process_pair import pair_of
from tests.helpers.training_process import (
    logged_steps,
    model_bytes,
    prepare,
    start,
    train_to_the_end,
    uninterrupted,
    wait_for_step,
)
from tests.helpers.trainings import Recorder, plan_of

CPU = torch.device("cpu")
TRAIN = {"steps": 24, "batch_size": 7, "log_every": 1, "save_every": 4, "precision": "fp32"}


@given(count=st.integers(1, 300), world=st.integers(1, 20))
def test_shares_partition_the_rows_evenly(count, world):
    group = [ProcessGroup(CPU, rank, world) for rank in range(world)]
    if count < world:
        with pytest.raises(UsageError, match=rf"batch_size {count} is less than the {world} processes"):
            group[0].share(count)
        return
    rows = [list(range(count))[one.share(count)] for one in group]
    assert [row for part in rows for row in part] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@given(sizes=st.lists(st.integers(1, BUCKET), max_size=12))
def test_buckets_keep_order_and_stay_small(sizes):
    tensors = [torch.empty(size, device="meta") for size in sizes]
    found = list(buckets(tensors))
    assert [id(tensor) for bucket in found for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert all(sum(tensor.numel() for tensor in bucket) <= BUCKET for bucket in found)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] "
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:58604\nmore"), "closed by"),
        (RuntimeError("[unbound_buffer.cc:78] Timed out waiting 20000ms for recv to complete"), "Timed out"),
        (dist.DistStoreError("wait timeout after 5000ms, keys: /0//cpu//0/1"), "wait timeout"),
        (
            dist.DistBackendError(f"{NCCL}remote process exited or a network error"),
            "remote process",
        ),
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


# Two ranks; the second is killed before or during the call of the first.
PAIR = """
import os, signal, sys, threading, time
import torch, torch.distributed as dist
from diffusion.train.distributed.process_group import RankFailed, ProcessGroup, join_group
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.state_files import SavedState

rank, port, moment = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = dist.TCPStore("127.0.0.1", port, 2, is_master=False)
group = ProcessGroup(torch.device("cpu"), rank, 2)
numbers = [torch.ones(500_000)]
what = {
    "sum": lambda: group.all_reduce(numbers),
    "agree": lambda: group.agree_on_stop(StopRequest()),
    "spread": lambda: list(group.broadcast_state("", SavedState({"a": numbers[0]}, {})).tensors.values()),
}
try:
    with join_group(group, store):
        group.all_reduce(numbers)
        if moment == "bug":
            group.all_reduce([torch.ones(1).expand(2)])  # an expanded tensor cannot be written
        if rank and moment in what:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            what.get(moment, what["sum"])()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sum", "agree", "spread", "during", "bug"])
def test_a_killed_rank_raises_rank_failed_and_a_bug_does_not(moment):
    with pair_of(PAIR, moment) as pair:
        output = pair[0].communicate(timeout=120)[0]
        pair[1].communicate(timeout=120)
    if moment == "bug":
        assert output.startswith("RuntimeError ")
    else:
        assert pair[1].returncode == -signal.SIGKILL
        assert output.startswith("RankFailed ")
        assert "gloo" not in output


@pytest.mark.parametrize("blocks", [False, True], ids=["on a CPU", "on a GPU"])
def test_a_failed_rank_saves_first_unless_the_device_is_blocked(digits_store, monkeypatch, blocks):
    monkeypatch.setattr(ProcessGroup, "loss_blocks", blocks)
    store, group, saved = open_store(digits_store), ProcessGroup(CPU), []
    state = new_state(plan_of(store, train=TRAIN), CPU)

    def lose() -> None:
        if state.step == 3:
            if blocks:
                monkeypatch.setattr(AsyncMetrics, "arrived", None)  # any wait for the device would hang
            raise RankFailed("another process has ended")

    with pytest.raises(RankFailed):
        train(state, store, group, Observer(), lambda state: saved.append(state.step), lose)
    assert saved == ([] if blocks else [3])
    assert group.over.is_set() == (not blocks), "the launcher must end a process that hangs"


def test_rank_zero_alone_ends_a_diverged_training(digits_store):
    """On GPUs ranks notice at different steps, and one that left before rank 0 would count as failed."""
    state = new_state(plan_of(open_store(digits_store), train=TRAIN), CPU)
    for is_rank_zero in (False, True):
        state.step, async_metrics = 1, AsyncMetrics()
        for _ in range(MAX_BAD_STEPS):
            async_metrics.add({"loss": torch.tensor(torch.nan)})
        if is_rank_zero:
            with pytest.raises(DiffctlError, match="non-finite steps in a row"):
                _record(state, async_metrics, Observer(), is_rank_zero)
        else:
            _record(state, async_metrics, Observer(), is_rank_zero)


@pytest.fixture
def prepared(project: Path) -> Path:
    prepare(project, **TRAIN)
    return project


def set_devices(folder: Path, devices: int, **changes: dict[str, Any]) -> None:
    train = {**TRAIN, "devices": devices, **changes.pop("train", {})}
    write_params(folder, train=train, **changes)


def curve(folder: Path, name: str = "loss") -> list[dict[str, float]]:
    with open(folder / f"plots/{name}.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


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
def test_two_processes_train_like_one(prepared: Path) -> None:
    """A batch of seven images is split into three and four."""
    model = {"dropout": 0.2}
    set_devices(prepared, 2, model=model)
    train_to_the_end(prepared)
    store, observer = open_store(prepared / "data/prepared/train"), Recorder()
    state = new_state(plan_of(store, train=TRAIN, model=model), CPU)
    train(state, store, ProcessGroup(CPU), observer, lambda state: None, lambda: None)
    found = curve(prepared)
    assert_same_curve(found, [{"step": step, **values} for step, values in observer.seen])


@pytest.mark.slow
def test_a_training_resumes_with_another_number_of_processes(prepared: Path) -> None:
    longer = {"steps": 120}
    set_devices(prepared, 1, train=longer)
    uninterrupted(prepared)
    expected = curve(prepared)
    set_devices(prepared, 2, train=longer)
    process, others = training_at(prepared, 5)
    assert len(others) == 1
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM, saved" in ended(process, others)
    assert process.returncode == 143
    set_devices(prepared, 1, train=longer)
    process, others = training_at(prepared, logged_steps(prepared)[-1] + 5)
    assert others == []
    process.send_signal(signal.SIGINT)
    ended(process, others)
    set_devices(prepared, 2, train=longer)
    assert "resuming after step" in train_to_the_end(prepared).stderr
    assert_same_curve(curve(prepared), expected)


@pytest.mark.slow
def test_two_processes_resume_bitwise_equal_after_sigkill(prepared: Path) -> None:
    changes = {"model": {"dropout": 0.2}}
    set_devices(prepared, 2, **changes)
    wanted = uninterrupted(prepared)
    process, others = training_at(prepared, 10)
    process.kill()
    ended(process, others)
    train_to_the_end(prepared)
    assert model_bytes(prepared) == wanted


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_state_is_saved(prepared: Path) -> None:
    set_devices(prepared, 3, train={"steps": 60})
    process, others = training_at(prepared, 9)
    others[1].kill()
    stderr = ended(process, others)
    assert process.returncode == 1
    assert "of the training's 3 ended with SIGKILL" in stderr
    step = logged_steps(prepared)[-1]
    assert f"resuming after step {step} of 60" in train_to_the_end(prepared).stderr


# Rank 0, with a device that blocks for ever once another rank has failed.
BLOCKED = """
import atexit, sys, threading
import torch.distributed as dist
from diffusion.train.distributed.process_group import RankFailed, ProcessGroup
from diffusion.train.observers import AsyncMetrics
from diffusion.train.checkpoint.run_dir import RunDir

def hanging(call):
    def perhaps(*arguments, **named):
        if isinstance(sys.exception(), RankFailed):
            threading.Event().wait()
        return call(*arguments, **named)
    return perhaps

ProcessGroup.loss_blocks = True
for owner, name in ((AsyncMetrics, "arrived"), (RunDir, "save"), (dist, "destroy_process_group")):
    setattr(owner, name, hanging(getattr(owner, name)))
atexit.register(threading.Event().wait)
sys.argv = ["diffctl", "stage", "train"]
from cli.main import main
main()
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_if_the_device_is_blocked(prepared: Path) -> None:
    set_devices(prepared, 3, train={"steps": 60})
    line = [sys.executable, "-c", BLOCKED]
    process = subprocess.Popen(line, cwd=prepared, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(prepared, process, 9)
    others = workers(process)
    others[1].kill()
    stderr = ended(process, others)
    assert process.returncode == 1
    assert stderr.count("of the training's 3 ended with SIGKILL") == 1
    again = train_to_the_end(prepared).stderr
    (step,) = re.findall(r"resuming after step (\d+) of 60", again)
    assert int(step) % TRAIN["save_every"] == 0
    assert int(step) >= 8


@pytest.mark.slow
def test_workers_die_with_rank_zero(prepared: Path) -> None:
    set_devices(prepared, 2, train={"steps": 5000})
    process, others = training_at(prepared, 3)
    process.kill()
    ended(process, others)


@pytest.mark.slow
def test_torchrun_can_launch_a_training(prepared: Path) -> None:
    uninterrupted(prepared)
    expected = curve(prepared)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "cli.entry", "stage", "train"],
        cwd=prepared,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_same_curve(curve(prepared), expected)
