"""SIGKILL, signals, a full disk and a second start against real trainings: the model is bitwise equal."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from diffusion.images.store import ImageStore
from diffusion.train.checkpoint.state_files import step_of
from diffusion.train.initial_state import new_state
from diffusion.train.plan import training_fingerprint
from tests.conftest import diffctl
from tests.helpers.disks import Mount
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import (
    DEADLINE,
    SLOW_SAVES,
    logged_steps,
    model_bytes,
    prepare,
    signal_at,
    start,
    states,
    train_to_the_end,
    uninterrupted,
    wait_for_step,
)
from tests.helpers.trainings import CPU, plan_of, run, run_until
from tests.helpers.waiting import wait_until
from tests.train.test_loop import weights_of
from tracking.spool.spool_status import list_trainings

pytestmark = pytest.mark.slow

STEPS = 160
ALL_STEPS = list(range(1, STEPS + 1))


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with prepared data and an MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    prepare(project, steps=STEPS, log_every=1, save_every=5, preview_every=100)
    return project


def torn_saves(folder: Path) -> set[Path]:
    """Return the temporary files of interrupted saves."""
    return set(folder.glob("runs/train/*/.state-*.tmp"))


def kill_in_a_save(folder: Path) -> None:
    """Kill the training during the write of its next state."""
    before = torn_saves(folder)
    process = start(folder, SLOW_SAVES)
    wait_until(lambda: bool(torn_saves(folder) - before) or process.poll() is not None, DEADLINE)
    process.kill()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    assert torn_saves(folder)


def pause(process: "subprocess.Popen[str]") -> None:
    """Stop the process until it gets SIGCONT."""
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def stop_by(folder: Path, number: signal.Signals) -> None:
    """Send the signal some steps after the start, and assert that the last step was saved."""
    process = signal_at(folder, max(logged_steps(folder), default=0) + 3, number)
    assert process.returncode == 128 + number
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert step_of(states(folder)[-1]) == logged_steps(folder)[-1]


def test_the_model_is_bitwise_equal_after_kills_and_stops(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    curve = (prepared / "plots/loss.csv").read_text()
    assert signal_at(prepared, 2, signal.SIGKILL).returncode == -signal.SIGKILL
    stop_by(prepared, signal.SIGTERM)
    kill_in_a_save(prepared)
    stop_by(prepared, signal.SIGINT)
    assert signal_at(prepared, 100, signal.SIGKILL).returncode == -signal.SIGKILL
    kill_in_a_save(prepared)
    assert not (prepared / "models/model.safetensors").exists()
    assert "resuming after step" in train_to_the_end(prepared).stderr
    assert model_bytes(prepared) == wanted
    assert (prepared / "plots/loss.csv").read_text() == curve
    assert logged_steps(prepared) == ALL_STEPS, "every point once, in order"
    assert not torn_saves(prepared)
    assert len(states(prepared)) == 2


def test_a_paused_training_is_listed_as_running_and_cannot_start_twice(prepared: Path) -> None:
    first = start(prepared)
    wait_for_step(prepared, first, 3)
    pause(first)
    assert [training.state for training in list_trainings()] == ["running"]
    second = diffctl(prepared, "stage", "train")
    assert second.returncode == 1
    assert second.stderr.startswith(f"diffctl: this training is already running (process {first.pid}, ")
    assert len(second.stderr.splitlines()) == 1
    first.send_signal(signal.SIGCONT)
    assert first.wait(DEADLINE) == 0
    assert logged_steps(prepared) == ALL_STEPS
    assert [training.state for training in list_trainings()] == ["finished"]


def test_a_full_disk_keeps_the_states_and_training_resumes_with_space(prepared: Path, mount: Mount) -> None:
    folder, small_disk = prepared, mount(prepared / "runs", "8m")
    process = start(folder)
    wait_until(lambda: len(states(folder)) == 2, DEADLINE)
    pause(process)
    while torn_saves(folder) or len(states(folder)) > 2:  # in a save, whose end makes room
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
        pause(process)
    room, ballast = os.statvfs(small_disk), small_disk / "ballast"
    free = room.f_bavail * room.f_frsize
    ballast.write_bytes(bytes(max(0, free - 20_000)))  # not enough for a third state
    process.send_signal(signal.SIGCONT)
    assert process.wait(DEADLINE) == 1
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert lines[-1].startswith("diffctl: ")
    assert "No space left on device" in lines[-1]
    assert "Traceback" not in "\n".join(lines)
    kept = states(folder)
    assert len(kept) == 2
    assert not torn_saves(folder)

    again = diffctl(folder, "stage", "train")
    assert again.returncode == 2, "the missing space is found before the start"
    assert "make room" in again.stderr
    assert kept[0] in states(folder)

    ballast.unlink()
    assert "resuming after step" in train_to_the_end(folder).stderr
    assert logged_steps(folder) == ALL_STEPS
    model = model_bytes(folder)
    assert diffctl(folder, "stage", "train", "--fresh").returncode == 0
    assert model_bytes(folder) == model


def test_a_killed_training_that_fresh_discards_is_listed_as_stopped(prepared: Path) -> None:
    signal_at(prepared, 3, signal.SIGKILL)
    assert diffctl(prepared, "stage", "train", "--fresh").returncode == 0
    trainings = list_trainings(prepared / "runs/train")
    assert sorted(one.state for one in trainings) == ["finished", "stopped"]


def test_a_resume_with_another_number_of_threads_changes_rounding_only(store: ImageStore) -> None:
    plan = plan_of(store, train={"precision": "fp32"})
    whole, first, resumed = (new_state(plan, CPU) for _ in range(3))
    run(whole, store)
    run_until(first, store, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert training_fingerprint(plan_of(store, train={"precision": "fp32"})) == training_fingerprint(plan)
        resumed.restore(first.saved())
        run(resumed, store)
    finally:
        torch.set_num_threads(threads)
    found, expected = weights_of(resumed.ema), weights_of(whole.ema)
    assert (found - expected).norm() < 1e-3 * expected.norm()
