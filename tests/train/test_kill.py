"""SIGKILL, SIGTERM and Ctrl-C against real trainings: the final model file is bitwise equal."""

import random
import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import diffctl
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import (
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
from tests.helpers.waiting import wait_until
from tracking.spool.spool_status import list_trainings

STEPS = 40


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with prepared data and an MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    prepare(project, steps=STEPS, log_every=1, save_every=6, preview_every=20)
    return project


@pytest.mark.slow
def test_resume_after_sigkill_is_bitwise_equal(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    curve = (prepared / "plots/loss.csv").read_text()
    for step in sorted(random.Random(0).sample(range(2, STEPS - 2), 3)):
        assert signal_at(prepared, step, signal.SIGKILL).returncode == -signal.SIGKILL
        assert not (prepared / "models/model.safetensors").exists()
    end = train_to_the_end(prepared)
    assert "resuming after step" in end.stderr
    assert model_bytes(prepared) == wanted
    assert (prepared / "plots/loss.csv").read_text() == curve
    assert logged_steps(prepared) == list(range(1, STEPS + 1)), "every point once, in order"


@pytest.mark.slow
def test_resume_of_a_fine_tuning_after_sigkill_is_bitwise_equal(prepared: Path) -> None:
    (prepared / "first.safetensors").write_bytes(uninterrupted(prepared))
    used = diffctl(prepared, "use", "--init-from", "first.safetensors")
    assert used.returncode == 0, used.stderr
    wanted = uninterrupted(prepared)
    assert wanted != (prepared / "first.safetensors").read_bytes()
    assert signal_at(prepared, 15, signal.SIGKILL).returncode == -signal.SIGKILL
    assert "resuming after step" in train_to_the_end(prepared).stderr
    assert model_bytes(prepared) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_state_before_the_exit(prepared: Path, number: int, code: int) -> None:
    process = signal_at(prepared, 3, number)
    assert process.returncode == code
    assert process.stderr is not None
    stderr = process.stderr.read()
    assert "Traceback" not in stderr
    (state,) = states(prepared)
    assert int(state.stem.removeprefix("state-")) >= 3
    assert "resuming after step" in train_to_the_end(prepared).stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "a flipped bit"])
def test_a_damaged_state_is_reported_and_the_one_before_used(prepared: Path, damage: str) -> None:
    wanted = uninterrupted(prepared)
    signal_at(prepared, 20, signal.SIGKILL)
    newest = states(prepared)[-1]
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        del data[-100:]
    else:
        data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    end = train_to_the_end(prepared)
    assert f"{newest.name} is damaged" in end.stderr
    assert model_bytes(prepared) == wanted


@pytest.mark.slow
def test_a_stopped_and_continued_process_is_listed_as_running(prepared: Path) -> None:
    process = start(prepared)
    wait_for_step(prepared, process, 3)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    (training,) = list_trainings()
    assert training.state == "running"
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 0
    assert logged_steps(prepared) == list(range(1, STEPS + 1))
    (training,) = list_trainings()
    assert training.state == "finished"
