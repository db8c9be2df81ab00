"""Overhead of logging and saving, and the time to resume: `python -m benchmarks.training [first]`.

| what | promise on 2 CPU cores, digits profile |
| --- | --- |
| saving, the spool, heartbeats and system metrics, at the default intervals | under 1% of training time |
| MLflow dead or hung all the while | the step takes as long as with a live one |
| from the start of the process to its first step's end, whatever it begins with | under 10 s |
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
STEPS = 1000  # of the timed training
OUTAGE_STEPS = 300
ROUNDS = 3  # of trainings with each state of the server, in turn, and with each kind of beginning
KILLS = ROUNDS
SHORT = 10  # steps of a training that a longer one resumes from

# Times the trainer's calls other than its own work, and the total.
TIMED = """
import json, sys, time
from pathlib import Path
from cli.stages.observers import TrackedTraining
import diffusion.train.loop as training

spent = {}
def timed(owner, name, label):
    inner = getattr(owner, name)
    def outer(*arguments):
        began = time.perf_counter()
        try:
            return inner(*arguments)
        finally:
            spent[label] = spent.get(label, 0.0) + time.perf_counter() - began
    setattr(owner, name, outer)

for owner, name, label in (
    (TrackedTraining, "save", "saving"), (TrackedTraining, "metrics", "spool"),
    (TrackedTraining, "progress", "live line and heartbeat"),
    (TrackedTraining, "preview", "previews"), (training, "train", "training"),
):
    timed(owner, name, label)
sys.argv = ["diffctl", "stage", "train"]
from cli.main import main
try:
    main()  # ends by SystemExit
finally:
    Path("spent.json").write_text(json.dumps(spent))
"""


def diffctl(folder: Path, *arguments: str, uri: str = "") -> str:
    """Run a command that must succeed and return its output."""
    return run(folder, ["-m", "cli.entry", *arguments], uri)


def run(folder: Path, arguments: list[str], uri: str = "") -> str:
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri or f"sqlite:///{folder / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)[:80]} failed:\n{done.stdout}")
    return done.stdout


def configure(folder: Path, **train: Any) -> None:
    """The digits profile with some of its training settings changed."""
    values = yaml.safe_load((ROOT / "profiles/digits.yaml").read_text())
    values["train"] |= train
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def shares(folder: Path) -> dict[str, float]:
    """Return the overhead of each part in percent of the training's time without previews."""
    configure(folder, steps=STEPS)
    run(folder, ["-c", TIMED])
    spent: dict[str, float] = json.loads((folder / "spent.json").read_text())
    whole = spent.pop("training") - spent.pop("previews")
    return {label: 100 * seconds / whole for label, seconds in spent.items()}


def step_milliseconds(folder: Path, uri: str, seed: int) -> float:
    """Milliseconds a step of a training of its own that logs to `uri`."""
    configure(folder, steps=OUTAGE_STEPS, seed=seed, preview_every=OUTAGE_STEPS)
    output = diffctl(folder, "stage", "train", uri=uri)
    took = re.search(rf"train {OUTAGE_STEPS:,}/{OUTAGE_STEPS:,} .*took ([\d.]+) s", output)
    assert took, output
    return 1000 * float(took[1]) / OUTAGE_STEPS


@contextmanager
def hung_server() -> Iterator[str]:
    """A port that takes connections and never answers."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def outages(folder: Path) -> dict[str, float]:
    """Median milliseconds a step with MLflow alive, dead and hung, in turn."""
    with hung_server() as hung:
        uris = {"alive": "", "dead": "http://127.0.0.1:9", "hung": hung}
        found: dict[str, list[float]] = {state: [] for state in uris}
        for turn in range(ROUNDS):
            for number, (state, uri) in enumerate(uris.items()):
                seed = 1 + turn * len(uris) + number  # a training of its own each
                found[state].append(step_milliseconds(folder, uri, seed))
    return {state: statistics.median(values) for state, values in found.items()}


def first_steps(folder: Path) -> dict[str, float]:
    """The longest of the seconds from a process's start to its first step's end, by what it begins with."""
    kinds = {
        "nothing": from_nothing,
        "a shorter training": from_shorter,  # its model is the next one's pretrained weights
        "train.init_from": from_start,
        "where SIGKILL left it": from_killed,
    }
    return {kind: max(measure(folder)) for kind, measure in kinds.items()}


def from_nothing(folder: Path) -> list[float]:
    """Trainings from scratch, each with its own seed."""
    seconds = []
    for number in range(ROUNDS):
        configure(folder, seed=100 + number)
        with at_work(folder) as (took, _):
            seconds.append(took)
    return seconds


def from_start(folder: Path) -> list[float]:
    """Trainings from the pretrained weights there."""
    from diffusion.train.pretrained import store_pretrained

    sha256 = store_pretrained(folder / "models/model.safetensors", folder / "start")[1].model_sha256
    seconds = []
    for number in range(ROUNDS):
        configure(folder, seed=200 + number, start={"sha256": sha256})
        with at_work(folder) as (took, step):
            seconds.append(took)
            assert step < SHORT, "it does not go on from another one"
    return seconds


def from_shorter(folder: Path) -> list[float]:
    """Trainings of more steps than one that has ended, under a constant rate."""
    seconds = []
    for number in range(ROUNDS):
        configure(folder, steps=SHORT, seed=300 + number, lr=0.002)
        diffctl(folder, "stage", "train")
        configure(folder, steps=10**6, seed=300 + number, lr=0.002)
        with at_work(folder) as (took, step):
            seconds.append(took)
            assert step > SHORT, "it did not resume"
    return seconds


def from_killed(folder: Path) -> list[float]:
    """One training that is killed again and again, a save or more after it began."""
    configure(folder, steps=10**6, seed=0, save_every=10, lr=0.002)
    seconds = []
    for _ in range(KILLS + 1):
        with at_work(folder) as (took, _):
            seconds.append(took)
            saved = set(folder.glob("runs/train/*/state-*.sealed"))
            while set(folder.glob("runs/train/*/state-*.sealed")) <= saved:
                time.sleep(0.01)
    return seconds[1:]


@contextmanager
def at_work(folder: Path) -> Iterator[tuple[float, int]]:
    """A training in its process, killed behind the block; the seconds to its first step's end, the step."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "cli.entry", "stage", "train"]
    training = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.DEVNULL)
    try:
        step = first_step(training, folder)
        yield time.perf_counter() - began, step
    finally:
        training.send_signal(signal.SIGKILL)
        training.wait()


def first_step(training: "subprocess.Popen[bytes]", folder: Path) -> int:
    """Wait for the process's first heartbeat, which comes with its first step; the step."""
    while training.poll() is None:
        for heartbeat in folder.glob("runs/train/*/run.json"):
            beat = json.loads(heartbeat.read_text())
            if beat["pid"] == training.pid and beat["step"]:
                return int(beat["step"])
        time.sleep(0.005)
    sys.exit(f"the training ended by itself (exit {training.returncode})")


def main(what: str = "all") -> None:
    """Measure, print a table; of the first steps alone where `what` is first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configure(folder)
        diffctl(folder, "stage", "data")
        if what == "all":
            watching(folder)
        for kind, longest in first_steps(folder).items():
            print(f"{f'first step from {kind}':<38} {longest:8.2f} s, the longest of {ROUNDS}", flush=True)


def watching(folder: Path) -> None:
    """Measure and print what watching and saving cost."""
    measured = shares(folder)
    for what, percent in measured.items():
        print(f"{what:<28} {percent:8.3f} % of training")
    print(f"{'together':<28} {sum(measured.values()):8.3f} %")
    for state, milliseconds in outages(folder).items():
        print(f"{f'a step, MLflow {state}':<28} {milliseconds:8.2f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
