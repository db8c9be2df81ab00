"""Real trainings as processes, that are stopped, killed and resumed."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import command, diffctl, environment, write_params
from tests.helpers.prepared import copy_data
from tests.helpers.waiting import wait_until

DEADLINE = 120.0  # seconds after which a test fails

# Every save is slow, so that a kill can come in the middle of one.
SLOW_SAVES = """
import os, time
fsync = os.fsync
def slow(handle):
    if "state-" in os.readlink(f"/proc/self/fd/{handle}"):
        time.sleep(5)
    fsync(handle)
os.fsync = slow
"""
TRAIN = """
import sys
sys.argv = ["diffctl", "stage", "train"]
from cli.main import main
main()
"""


def prepare(folder: Path, **train: Any) -> None:
    """Write a small params.yaml into the folder and give it prepared data."""
    write_params(folder, train=train)
    copy_data(folder)


def start(folder: Path, script: str = "", env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start `diffctl stage train` in the folder, after a script in its process."""
    line = [sys.executable, "-c", script + TRAIN] if script else command("stage", "train")
    return subprocess.Popen(line, cwd=folder, env=environment(env), stderr=subprocess.PIPE, text=True)


def logged_steps(folder: Path) -> list[int]:
    """Return the steps with a logged loss, in the file's order, without system metrics."""
    lines = (
        line
        for path in folder.glob("runs/train/*/events.jsonl")
        for line in path.read_text().splitlines()
        if line.startswith('{"kind":"metrics"') and line.endswith("}")
    )
    return [event["step"] for event in map(json.loads, lines) if "loss" in event["values"]]


def wait_for_step(folder: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Wait until the training has logged `step`, or has ended before."""
    wait_until(lambda: max(logged_steps(folder), default=0) >= step or process.poll() is not None, DEADLINE)


def signal_at(folder: Path, step: int, number: int) -> "subprocess.Popen[str]":
    """Start the training and send it the signal once it has logged `step`, or when it ends before."""
    process = start(folder)
    wait_for_step(folder, process, step)
    process.send_signal(number)
    process.wait(DEADLINE)
    return process


def loss_curve(folder: Path) -> list[dict[str, float]]:
    """Return the rows of plots/loss.csv."""
    with open(folder / "plots/loss.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def model_bytes(folder: Path) -> bytes:
    return (folder / "models/model.safetensors").read_bytes()


def train_to_the_end(folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = diffctl(folder, "stage", "train", env=env)
    assert done.returncode == 0, done.stderr
    return done


def uninterrupted(folder: Path) -> bytes:
    """Return the model of an uninterrupted training; its state is discarded."""
    train_to_the_end(folder)
    model = model_bytes(folder)
    (folder / "models/model.safetensors").unlink()
    for run in folder.glob("runs/train/*"):
        run.rename(folder / "runs" / f"kept-{run.name}")
    return model


def states(folder: Path) -> list[Path]:
    """Return the saved states, the newest last."""
    return sorted(folder.glob("runs/train/*/state-*.sealed"))
