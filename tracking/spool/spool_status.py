"""The trainings in runs/train/ as their folders describe them, and how far each was delivered."""

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, NonNegativeInt

from diffusion.layout import TRAIN_RUNS
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.locks import is_held
from diffusion.train.checkpoint.run_record import read_heartbeat
from tracking.connectivity import redact_uri
from tracking.spool.event_log import EVENTS, ends_line, read_events, read_lines
from tracking.spool.events import End, Params, Points, Start
from tracking.store import database_file

SENT = "sent.json"

# stopped: a signal ended it after its state was saved. dead: it was killed without logging its end.
State = Literal["running", "dead", "finished", "failed", "stopped"]
STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclasses.dataclass(frozen=True)
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


def read_status(folder: Path) -> TrainingStatus | None:
    """Return the status of the training in `folder`; None if its spool contains no start."""
    # Check the lock first: a training logs its end before it releases the lock.
    running = is_held(folder / "lock")
    beat = None
    with suppress(OSError, DiffctlError):  # a damaged heartbeat hides nothing else
        beat = read_heartbeat(folder)
    key = name = ""
    status: str | None = None
    steps: int | None = None
    step, started, updated = beat.step if beat else 0, 0, 0
    for event in read_events(folder):
        updated = max(updated, getattr(event, "time", 0))
        match event:
            case Start():
                key, name, status = event.key, event.name, None
                started = started or updated
            case Points():
                step = max(step, event.step)
            case Params():
                value = event.values.get("train.steps", "")
                steps = int(value) if value.isdecimal() and len(value) < 16 else steps
            case End():
                status = event.status
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


class DeliveryState(BaseModel, extra="forbid"):
    """How far the spool of the training `key` was delivered to `store`: the byte offset, and its run."""

    folder: Path = Field(Path(), exclude=True)
    store: str
    key: str
    run_id: str | None = None
    offset: NonNegativeInt = 0
    tries: NonNegativeInt = 0  # of the next entry
    postponed: list[str] = Field(default_factory=list)  # lines with files that could not be stored yet
    deleted: bool = False  # somebody deleted the run

    @classmethod
    def load(cls, folder: Path, uri: str) -> "DeliveryState":
        """Read `sent.json`; nothing was sent if it is damaged or of another store.

        Nor if it is of another training: a fresh training may start while a sender is at work. Everything is
        sent again if a power cut took back lines that were sent.
        """
        keys = (event.key for event in read_events(folder) if isinstance(event, Start))
        store, key = _relative_store(folder, uri), next(keys, "")
        with suppress(FileNotFoundError, DiffctlError):  # sending it again changes nothing
            sent = read_checksummed_json(folder / SENT, cls)
            if (sent.store, sent.key) == (store, key):
                offset = sent.offset if ends_line(folder, sent.offset) else 0
                return sent.model_copy(update={"folder": folder, "offset": offset})
        return cls(folder=folder, store=store, key=key)

    def save(self) -> None:
        """Write `sent.json`."""
        write_json(self.folder / SENT, add_checksum(self.model_dump()))

    @property
    def complete(self) -> bool:
        """Whether nothing is left: every complete line was delivered, or the run was deleted."""
        lines = read_lines(self.folder, self.offset)
        return self.deleted or (not self.postponed and next(lines, None) is None)


def _relative_store(folder: Path, uri: str) -> str:
    """Return the store's URI, relative to the folder for a database in one of its parents.

    A project that was copied or moved together with its database remembers what was delivered.
    """
    database, here = database_file(uri), folder.resolve()
    if database is None or database.resolve().parent not in here.parents:
        return redact_uri(uri)
    return f"sqlite:///{os.path.relpath(database.resolve(), here)}"
