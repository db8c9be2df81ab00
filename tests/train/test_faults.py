"""Many faults in one training: nothing is lost, and the model is bitwise equal."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import diffctl
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import (
    DEADLINE,
    logged_steps,
    model_bytes,
    prepare,
    start,
    states,
    train_to_the_end,
    uninterrupted,
    wait_for_step,
)
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

STEPS = 240
KILLS = 8
SAVES = 3


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with prepared data and an MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    prepare(project, steps=STEPS, log_every=1, save_every=5, preview_every=100)
    return project


def torn_saves(folder: Path) -> set[Path]:
    """Return the temporary files of interrupted saves."""
    return set(folder.glob("runs/train/*/.state-*.tmp"))


def kill_at(folder: Path, step: int, delay: float) -> None:
    """Kill the training some time after it has logged `step`."""
    process = start(folder)
    wait_for_step(folder, process, step)
    time.sleep(delay)  # a random moment within a step
    process.kill()
    assert process.wait(DEADLINE) == -signal.SIGKILL


def kill_in_a_save(folder: Path) -> None:
    """Kill the training during the write of its next state."""
    before = torn_saves(folder)
    process = start(folder, slow_saves=True)
    wait_until(lambda: bool(torn_saves(folder) - before) or process.poll() is not None, DEADLINE)
    process.kill()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    assert torn_saves(folder)


def test_the_model_is_bitwise_equal_after_eight_kills(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    chance = random.Random(5)
    steps = sorted(chance.sample(range(2, STEPS - 10), KILLS))
    saves = set(chance.sample(range(KILLS), SAVES))
    for number, step in enumerate(steps):
        if number in saves:
            kill_in_a_save(prepared)
        else:
            kill_at(prepared, step, chance.uniform(0, 0.02))
        assert not (prepared / "models/model.safetensors").exists()
    train_to_the_end(prepared)
    assert model_bytes(prepared) == wanted
    assert logged_steps(prepared) == list(range(1, STEPS + 1)), "every point once, in order"
    assert not torn_saves(prepared)
    assert len(states(prepared)) == 2


@pytest.fixture
def small_disk(prepared: Path) -> Iterator[Path]:
    """Return the project with a disk of 8 MB for `runs/`."""
    disk = prepared / "runs"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a disk of a few MB can be made by root only: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def free_bytes(disk: Path) -> int:
    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize


def test_a_full_disk_keeps_the_states_and_training_resumes_with_space(small_disk: Path) -> None:
    folder = small_disk.parent
    process = start(folder)
    wait_until(lambda: len(states(folder)) == 2, DEADLINE)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(max(0, free_bytes(small_disk) - 20_000)))  # not enough for a third state
    assert process.wait(DEADLINE) == 1
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert lines[-1].startswith("diffctl: ")
    assert "No space left on device" in lines[-1]
    assert "make room" in lines[-1]
    assert "Traceback" not in "\n".join(lines)
    kept = states(folder)
    assert len(kept) == 2
    assert not torn_saves(folder)

    again = diffctl(folder, "stage", "train")
    assert again.returncode == 2, "the missing space is found before the start"
    assert "Traceback" not in again.stderr
    assert "make room" in again.stderr
    assert states(folder)[0] == kept[0] or states(folder)[0] == kept[1]

    ballast.unlink()
    end = train_to_the_end(folder)
    assert "resuming after step" in end.stderr
    assert logged_steps(folder) == list(range(1, STEPS + 1))
    model = model_bytes(folder)
    assert diffctl(folder, "stage", "train", "--fresh").returncode == 0
    assert model_bytes(folder) == model


def test_a_second_start_of_a_running_training_is_refused(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    first = start(prepared)
    wait_for_step(prepared, first, 2)
    second = diffctl(prepared, "stage", "train")
    assert second.returncode == 1
    assert second.stderr.startswith(f"diffctl: this training is already running (process {first.pid}, ")
    assert len(second.stderr.splitlines()) == 1
    assert first.wait(DEADLINE) == 0
    assert model_bytes(prepared) == wanted
    assert logged_steps(prepared) == list(range(1, STEPS + 1))
