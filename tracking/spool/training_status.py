"""The trainings of this project as their folders in runs/train/ show them, without asking MLflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import is_held
from diffusion.train.checkpoint.run_record import Heartbeat, read_heartbeat
from tracking.spool.spool_writer import EVENTS, read_events

# stopped: a signal ended it after its state was saved. dead: it was killed and could say nothing.
State = Literal["running", "dead", "finished", "failed", "stopped"]
STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class TrainingStatus:
    """What a training's folder says. Times are milliseconds since 1970, `heartbeat` that of its last sign."""

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
    """The training in `folder`; None when its spool holds no whole start yet."""
    # Looked at first: who lets go of it afterwards has already written how it ended.
    running = is_held(folder / "lock")
    beat = _beat(folder)
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
                steps = _steps(event["values"].get("train.steps", "")) or steps
            case "status":
                status = event["status"]
    if not key:
        return None
    state: State = "running" if running else STATES[status] if status else "dead"
    heartbeat = round(1000 * beat.heartbeat) if beat else None
    return TrainingStatus(folder, key, name, state, step, steps, started, updated, heartbeat)


def _beat(folder: Path) -> Heartbeat | None:
    try:
        return read_heartbeat(folder)
    except (OSError, DiffctlError):  # it only watches
        return None


def _steps(written: str) -> int | None:
    return int(written) if written.isdecimal() and len(written) < 16 else None


def spool_folders(root: Path = TRAIN_RUNS) -> list[Path]:
    """Every training folder that has a spool."""
    return sorted(path.parent for path in root.glob(f"*/{EVENTS}"))


def list_trainings(root: Path = TRAIN_RUNS) -> list[TrainingStatus]:
    """Every training of the project, the newest first."""
    found = [training for folder in spool_folders(root) if (training := read_status(folder))]
    return sorted(found, key=lambda training: training.started, reverse=True)
