"""The trainings of this project, as their folders in runs/train/ describe them, without MLflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import is_held
from diffusion.train.checkpoint.run_record import read_heartbeat
from tracking.spool.spool_events import EVENTS, read_events

# stopped: a signal ended it after its state was saved. dead: it was killed without logging its end.
State = Literal["running", "dead", "finished", "failed", "stopped"]
STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class TrainingStatus:
    """The status of a training. Times are milliseconds since 1970; `heartbeat` is its last sign of life."""

    folder: Path
    key: str
    name: str
    state: State
    step: int
    steps: int | None
    started: int
    updated: int
    heartbeat: int | None

    @property
    def fingerprint(self) -> str:
        """The name of its folder."""
        return self.folder.name


def read_status(folder: Path) -> TrainingStatus | None:
    """Return the status of the training in `folder`; None if its spool contains no start."""
    # Check the lock first: a training logs its end before it releases the lock.
    running = is_held(folder / "lock")
    try:
        beat = read_heartbeat(folder)
    except (OSError, DiffctlError):  # a damaged heartbeat hides nothing else
        beat = None
    key = name = ""
    status: str | None = None
    steps: int | None = None
    step, started, updated = beat.step if beat else 0, 0, 0
    for event in read_events(folder):
        updated = event.get("time", updated)
        match event["kind"]:
            case "start":
                key, name, status = event["key"], event["name"], None
                started = started or updated
            case "metrics":
                step = max(step, event["step"])
            case "params":
                value = event["values"].get("train.steps", "")
                steps = int(value) if value.isdecimal() and len(value) < 16 else steps
            case "status":
                status = event["status"]
    if not key:
        return None
    state: State = "running" if running else STATES[status] if status else "dead"
    heartbeat = round(1000 * beat.heartbeat) if beat else None
    return TrainingStatus(folder, key, name, state, step, steps, started, updated, heartbeat)


def spool_folders(root: Path = TRAIN_RUNS) -> list[Path]:
    """Return every training folder that has a spool."""
    return sorted(path.parent for path in root.glob(f"*/{EVENTS}"))


def list_trainings(root: Path = TRAIN_RUNS) -> list[TrainingStatus]:
    """Return every training of the project, the newest first."""
    found = [training for folder in spool_folders(root) if (training := read_status(folder))]
    return sorted(found, key=lambda training: training.started, reverse=True)
