"""SIGKILL, SIGTERM and Ctrl-C against real trainings: the final model file does not change by a byte."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import command, diffctl, environment, write_params

STEPS = 40
TRAIN = {"steps": STEPS, "log_every": 1, "save_every": 6, "preview_every": 20}
DEADLINE = 120.0  # seconds without progress that fail a test; nothing waits for it otherwise


@pytest.fixture
def prepared(project: Path) -> Path:
    """A project with its data prepared."""
    write_params(project, train=TRAIN)
    done = diffctl(project, "stage", "data")
    assert done.returncode == 0, done.stderr
    return project


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("stage", "train"), cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )


def logged_step(folder: Path) -> int:
    """The last step that the training has logged."""
    last = 0
    for path in folder.glob("runs/train/*/events.jsonl"):
        for line in path.read_text().splitlines():
            if line.startswith('{"kind":"metrics"') and line.endswith("}"):
                last = max(last, json.loads(line)["step"])
    return last


def signal_at(folder: Path, step: int, number: int) -> "subprocess.Popen[str]":
    """Start the training and send it the signal once it has logged `step`, or when it ends before."""
    process = start(folder)
    deadline = time.monotonic() + DEADLINE
    while logged_step(folder) < step and process.poll() is None:
        assert time.monotonic() < deadline, f"the training stands at step {logged_step(folder)}"
        time.sleep(0.005)
    process.send_signal(number)
    process.wait(DEADLINE)
    return process


def model_bytes(folder: Path) -> bytes:
    return (folder / "models/unet.safetensors").read_bytes()


def train_to_the_end(folder: Path) -> subprocess.CompletedProcess[str]:
    done = diffctl(folder, "stage", "train")
    assert done.returncode == 0, done.stderr
    return done


def uninterrupted(folder: Path) -> bytes:
    """The model of a training that nothing stopped; its state is discarded."""
    train_to_the_end(folder)
    model = model_bytes(folder)
    (folder / "models/unet.safetensors").unlink()
    for run in folder.glob("runs/train/*"):
        run.rename(folder / "runs" / f"kept-{run.name}")
    return model


def test_killed_at_random_steps_the_model_is_the_same_byte_for_byte(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    curve = (prepared / "plots/loss.csv").read_text()
    for step in sorted(random.Random(0).sample(range(2, STEPS - 2), 3)):
        assert signal_at(prepared, step, signal.SIGKILL).returncode == -signal.SIGKILL
        assert not (prepared / "models/unet.safetensors").exists()
    end = train_to_the_end(prepared)
    assert "going on after step" in end.stderr
    assert model_bytes(prepared) == wanted
    assert (prepared / "plots/loss.csv").read_text() == curve
    (events,) = prepared.glob("runs/train/*/events.jsonl")
    steps = [json.loads(line)["step"] for line in events.read_text().splitlines() if '"metrics"' in line]
    assert steps == list(range(1, STEPS + 1)), "every point once, in order"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_it_saves_first_and_goes_on(prepared: Path, number: int, code: int) -> None:
    process = signal_at(prepared, 3, number)
    assert process.returncode == code
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said
    (state,) = prepared.glob("runs/train/*/state-*.safetensors")
    assert int(state.stem.removeprefix("state-")) >= 3
    assert "going on after step" in train_to_the_end(prepared).stderr


@pytest.mark.slow
def test_a_truncated_newest_state_is_reported_and_the_one_before_used(prepared: Path) -> None:
    wanted = uninterrupted(prepared)
    signal_at(prepared, 20, signal.SIGKILL)
    newest = sorted(prepared.glob("runs/train/*/state-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    end = train_to_the_end(prepared)
    assert f"{newest.name} is damaged" in end.stderr
    assert model_bytes(prepared) == wanted


@pytest.mark.slow
def test_a_finished_training_is_not_trained_again(prepared: Path) -> None:
    train_to_the_end(prepared)
    model = model_bytes(prepared)
    again = train_to_the_end(prepared)
    assert f"going on after step {STEPS} of {STEPS}" in again.stderr
    assert model_bytes(prepared) == model
