"""Training in several processes: equal to one but for rounding, stopped together, ended together.

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
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.loader import Batches
from diffusion.data.store import open_store
from diffusion.distributed import BUCKET, RankLost, Ranks, _buckets, joined, lost_rank_told
from diffusion.draws import draw_batch
from diffusion.errors import DiffctlError, UsageError
from diffusion.readings import Readings
from diffusion.timesteps import UniformSampler
from diffusion.training import MAX_BAD_STEPS, Silent, _take, new_state, train
from tests.conftest import diffctl, environment, write_params
from tests.test_training import Quiet, artefact_of
from tests.training_process import (
    logged_steps,
    model_bytes,
    prepare,
    start,
    train_to_the_end,
    uninterrupted,
    wait_for_step,
)

CPU = torch.device("cpu")
TRAIN = {"steps": 24, "batch_size": 7, "log_every": 1, "save_every": 4, "precision": "fp32"}


@given(count=st.integers(1, 300), world=st.integers(1, 20))
def test_shares_are_all_rows_once_and_even(count, world):
    ranks = [Ranks(CPU, rank, world) for rank in range(world)]
    if count < world:
        with pytest.raises(UsageError, match=rf"batch_size {count} is less than the {world} processes"):
            ranks[0].share(count)
        return
    rows = [list(range(count))[one.share(count)] for one in ranks]
    assert [row for part in rows for row in part] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@given(sizes=st.lists(st.integers(1, BUCKET), max_size=12))
def test_buckets_keep_order_and_stay_small(sizes):
    tensors = [torch.empty(size, device="meta") for size in sizes]
    buckets = list(_buckets(tensors))
    assert [id(tensor) for bucket in buckets for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert all(sum(tensor.numel() for tensor in bucket) <= BUCKET for bucket in buckets)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_shares_of_a_draw_are_the_whole_draw(digits_store, world):
    store = open_store(digits_store)
    artefact = artefact_of(store, train={"batch_size": 7, "p_uncond": 0.3}, data={"flip": True})
    sampler, data = UniformSampler(artefact.process.timesteps), Batches(store, CPU)
    whole = draw_batch(artefact, sampler, data, 5)
    shares = [
        draw_batch(artefact, sampler, data, 5, Ranks(CPU, rank, world).share(7)) for rank in range(world)
    ]
    for index, expected in enumerate(whole):
        assert torch.equal(torch.cat([list(share)[index] for share in shares]), expected)


def test_the_loss_of_a_process_is_told_with_its_cause_and_a_lack_of_memory_is_not_it():
    said = r"has ended \(Connection closed by peer\): the same command goes on"
    with pytest.raises(RankLost, match=said), lost_rank_told():
        raise RuntimeError("Connection closed by peer\nException raised from ...")
    with pytest.raises(torch.OutOfMemoryError), lost_rank_told():
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("blocks", [False, True], ids=["on a CPU", "on a GPU"])
def test_the_loss_of_a_process_is_saved_first_unless_it_blocks_the_device(digits_store, monkeypatch, blocks):
    monkeypatch.setattr(Ranks, "loss_blocks", blocks)
    store, ranks, saved = open_store(digits_store), Ranks(CPU), []
    state = new_state(artefact_of(store, train=TRAIN), CPU)

    def lose() -> None:
        if state.step == 3:
            if blocks:
                monkeypatch.setattr(Readings, "arrived", None)  # whatever waits for the device would hang
            raise RankLost("another process has ended")

    with pytest.raises(RankLost):
        train(state, store, ranks, Silent(), lambda state: saved.append(state.step), lose)
    assert saved == ([] if blocks else [3])
    assert ranks.over.is_set() == (not blocks), "who watches must end a process that hangs"


@pytest.mark.parametrize(
    ("blocks", "error", "destroyed"), [(True, RankLost, 0), (False, RankLost, 1), (True, DiffctlError, 1)]
)
def test_a_group_that_is_blocked_is_left_as_it_is(monkeypatch, blocks, error, destroyed):
    calls = []
    monkeypatch.setattr(Ranks, "loss_blocks", blocks)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append(1))
    with pytest.raises(error), joined(Ranks(CPU, 0, 2), None):
        raise error("it failed")
    assert len(calls) == destroyed


def test_the_first_process_alone_ends_a_training_that_diverges(digits_store):
    """On GPUs each notices at a step of its own, and one that left before the first would be told as lost."""
    state = new_state(artefact_of(open_store(digits_store), train=TRAIN), CPU)
    for is_first in (False, True):
        state.step, readings = 1, Readings()
        for _ in range(MAX_BAD_STEPS):
            readings.add({"loss": torch.tensor(torch.nan)})
        if is_first:
            with pytest.raises(DiffctlError, match="non-finite steps in a row"):
                _take(state, readings, Silent(), is_first)
        else:
            _take(state, readings, Silent(), is_first)


@pytest.fixture
def prepared(project: Path) -> Path:
    prepare(project, **TRAIN)
    return project


def set_devices(folder: Path, devices: int, **changes: dict[str, Any]) -> None:
    train = {**TRAIN, "devices": devices, **changes.pop("train", {})}
    write_params(folder, train=train, **changes)


def curve(folder: Path) -> list[dict[str, float]]:
    with open(folder / "plots/loss.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The other processes of its training."""
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
    """What it said; nothing of it may be left."""
    _, said = process.communicate(timeout=90)
    assert not psutil.wait_procs(others, timeout=30)[1]
    assert "Traceback" not in said
    return said


def test_two_processes_train_as_one(prepared: Path) -> None:
    """Seven images of a batch are three and four; dropout's masks are theirs wherever they are."""
    model = {"dropout": 0.2}
    set_devices(prepared, 2, model=model)
    train_to_the_end(prepared)
    store, observer = open_store(prepared / "data/prepared/train"), Quiet()
    state = new_state(artefact_of(store, train=TRAIN, model=model), CPU)
    train(state, store, Ranks(CPU), observer, lambda state: None, lambda: None)
    found = curve(prepared)
    expected = [{"step": step, **values} for step, values in observer.seen]
    assert_same_curve(found, [{name: row[name] for name in found[0]} for row in expected])


@pytest.mark.slow
def test_a_training_goes_on_in_another_number_of_processes(prepared: Path) -> None:
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
    assert "going on after step" in train_to_the_end(prepared).stderr
    assert_same_curve(curve(prepared), expected)


@pytest.mark.slow
def test_two_processes_resume_byte_for_byte(prepared: Path) -> None:
    changes = {"model": {"dropout": 0.2}}
    set_devices(prepared, 2, **changes)
    wanted = uninterrupted(prepared)
    process, others = training_at(prepared, 10)
    process.kill()
    ended(process, others)
    train_to_the_end(prepared)
    assert model_bytes(prepared) == wanted


@pytest.mark.slow
def test_the_timestep_sampler_learns_the_same_from_two_processes(prepared: Path) -> None:
    changes = {"process": {"t_sampler": "loss-aware", "loss": "vlb", "timesteps": 4}}
    changes["sweep"] = {"steps": [2]}
    curves = {}
    for devices in (1, 2):
        set_devices(prepared, devices, **changes)
        assert diffctl(prepared, "stage", "train", "--fresh").returncode == 0
        curves[devices] = curve(prepared)
    assert_same_curve(curves[2], curves[1])


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_a_sentence_and_nothing_is_lost(prepared: Path) -> None:
    set_devices(prepared, 3, train={"steps": 60})
    process, others = training_at(prepared, 9)
    others[1].kill()
    said = ended(process, others)
    assert process.returncode == 1
    assert "of the training's 3 ended with SIGKILL" in said
    step = logged_steps(prepared)[-1]
    assert f"going on after step {step} of 60" in train_to_the_end(prepared).stderr


# The first process, on whose device nothing ends any more once another one is lost.
BLOCKED = """
import atexit, sys, threading
import torch.distributed as dist
from diffusion.distributed import RankLost, Ranks
from diffusion.readings import Readings
from diffusion.trainrun import TrainRun

def hanging(call):
    def perhaps(*arguments, **named):
        if isinstance(sys.exception(), RankLost):
            threading.Event().wait()
        return call(*arguments, **named)
    return perhaps

Ranks.loss_blocks = True
for owner, name in ((Readings, "arrived"), (TrainRun, "save"), (dist, "destroy_process_group")):
    setattr(owner, name, hanging(getattr(owner, name)))
atexit.register(threading.Event().wait)
sys.argv = ["diffctl", "stage", "train"]
from cli.main import main
main()
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_where_nothing_can_be_saved_any_more(prepared: Path) -> None:
    set_devices(prepared, 3, train={"steps": 60})
    line = [sys.executable, "-c", BLOCKED]
    process = subprocess.Popen(line, cwd=prepared, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(prepared, process, 9)
    others = workers(process)
    others[1].kill()
    said = ended(process, others)
    assert process.returncode == 1
    assert said.count("of the training's 3 ended with SIGKILL") == 1
    again = train_to_the_end(prepared).stderr
    (step,) = re.findall(r"going on after step (\d+) of 60", again)
    assert int(step) % TRAIN["save_every"] == 0
    assert int(step) >= 8


@pytest.mark.slow
def test_the_others_die_with_the_first_one(prepared: Path) -> None:
    set_devices(prepared, 2, train={"steps": 5000})
    process, others = training_at(prepared, 3)
    process.kill()
    ended(process, others)


@pytest.mark.slow
def test_ctrl_c_reaches_all_of_them_and_they_stop_at_one_step(prepared: Path) -> None:
    set_devices(prepared, 2, train={"steps": 5000})
    process, others = training_at(prepared, 3)
    for one in [*others, process]:
        one.send_signal(signal.SIGINT)
    said = ended(process, others)
    assert process.returncode == 130
    assert said.count("stopped by SIGINT") == 1


def test_a_batch_smaller_than_the_processes_is_refused(prepared: Path) -> None:
    set_devices(prepared, 8)
    done = diffctl(prepared, "stage", "train")
    assert done.returncode == 2
    assert "train.batch_size 7 is less than the 8 processes" in done.stderr


@pytest.mark.slow
def test_torchrun_is_another_way_to_start_it(prepared: Path) -> None:
    uninterrupted(prepared)
    expected = curve(prepared)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "cli.main", "stage", "train"],
        cwd=prepared,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_same_curve(curve(prepared), expected)
