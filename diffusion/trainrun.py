"""The folder of one training, `runs/train/<fingerprint>/`: its lock, its identity and its newest state."""

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import DiffctlError
from diffusion.files import write_json, write_text
from diffusion.locks import LockBusy, file_lock
from diffusion.state import newest_state, save_state
from diffusion.training import TrainState

CURVE = ("step", "loss", "mse", "vlb", "grad_norm", "lr", "skipped_steps")


@dataclass(frozen=True)
class TrainRun:
    """An open training folder. `key` names this training wherever it is tracked."""

    folder: Path
    key: str

    def beat(self, step: int) -> None:
        """Say that this process is alive and how far it is, for who looks from another machine."""
        write_json(
            self.folder / "run.json",
            {"key": self.key, "pid": os.getpid(), "step": step, "heartbeat": round(time.time(), 3)},
        )

    def save(self, state: TrainState) -> None:
        """Keep the state; DiffctlError on a full disk, the state before it stays."""
        save_state(self.folder, state.step, state.tensors(), state.values())

    def restore(self, state: TrainState) -> bool:
        """Bring `state` to the newest whole saved one; False when there is none."""
        saved = newest_state(self.folder)
        if saved is not None:
            state.restore(saved)
        return saved is not None


@contextmanager
def open_run(root: Path, fingerprint: str, *, fresh: bool = False) -> Iterator[TrainRun]:
    """Hold the training's folder for this process alone; `fresh` discards what is there.

    The lock is the process's own and dies with it. DiffctlError when another process holds it.
    """
    folder = root / fingerprint
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / "lock", timeout=0))
        except LockBusy:
            raise DiffctlError(
                f"this training is already running (process {_pid(folder)}, {folder}): wait for it or stop it"
            ) from None
        if fresh:
            _discard(folder)
        run = TrainRun(folder, _key(folder) or uuid.uuid4().hex)
        run.beat(0)
        yield run


def write_loss_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the training's means by step as CSV: step, loss and its parts, gradient norm, rate."""
    names = [name for name in CURVE if any(name in row for row in history)]
    lines = [",".join(names)] + [
        ",".join(f"{row.get(name, math.nan):.6g}" for name in names) for row in history
    ]
    write_text(path, "\n".join(lines) + "\n")


def _identity(folder: Path) -> dict[str, object]:
    try:
        values: dict[str, object] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def _key(folder: Path) -> str | None:
    key = _identity(folder).get("key")
    return str(key) if key else None


def _pid(folder: Path) -> object:
    return _identity(folder).get("pid", "unknown")


def _discard(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
