"""The folder of one training, `runs/train/<fingerprint>/`: its lock, its identity and its newest state."""

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.changes import changed_fields
from diffusion.files import sync_folder, write_json, write_text
from diffusion.locks import file_lock
from diffusion.resumable import Resumable
from diffusion.state import newest_state, save_state

CONFIG = "config.json"  # in a training's folder: what its fingerprint was made of
CURVE = ("step", "loss", "accuracy", "mse", "vlb", "grad_norm", "lr", "skipped_steps")


@dataclass(frozen=True)
class TrainRun:
    """An open training folder. `key` names this training wherever it is tracked; `is_new` in a new folder."""

    folder: Path
    key: str
    is_new: bool = True

    def beat(self, step: int) -> None:
        """Say that this process is alive and how far it is, for who looks from another machine."""
        write_json(
            self.folder / "run.json",
            {"key": self.key, "pid": os.getpid(), "step": step, "heartbeat": round(time.time(), 3)},
        )

    def save(self, state: Resumable) -> None:
        """Keep the state; DiffctlError on a full disk, the state before it stays."""
        save_state(self.folder, state.step, state.tensors(), state.values())

    def restore(self, state: Resumable) -> bool:
        """Bring `state` to the newest whole saved one; False when there is none."""
        saved = newest_state(self.folder)
        if saved is not None:
            state.restore(saved)
        return saved is not None

    def changes(self) -> str | None:
        """How a new training's configuration differs from that of the newest other one; None without one."""
        others = [path for path in self.folder.parent.glob(f"*/{CONFIG}") if path.parent != self.folder]
        if not (self.is_new and others and (self.folder / CONFIG).exists()):
            return None
        other = max(others, key=lambda path: (path.parent / "run.json").stat().st_mtime_ns)
        fields = changed_fields(_values(other), _values(self.folder / CONFIG))
        return f"{', '.join(fields)} (against {other.parent})"


@contextmanager
def open_run(
    root: Path, fingerprint: str, *, fresh: bool = False, config: dict[str, Any] | None = None
) -> Iterator[TrainRun]:
    """Hold the training's folder for this process alone; `fresh` discards what is there.

    `config` is what the fingerprint was made of, kept for `TrainRun.changes`. The lock is the process's own
    and dies with it. DiffctlError when another process holds it.
    """
    folder = root / fingerprint
    busy = f"this training is already running (process {_pid(folder)}, {folder}): wait for it or stop it"
    with file_lock(folder / "lock", timeout=0, busy=busy):
        is_new = not (folder / CONFIG).exists()
        if fresh:
            _discard(folder)
        for torn in folder.glob(".state-*.tmp"):  # of a save that was killed
            torn.unlink()
        run = TrainRun(folder, _key(folder) or uuid.uuid4().hex, is_new)
        run.beat(0)
        if config is not None:
            write_json(folder / CONFIG, config)
        sync_folder(root)
        yield run


def write_loss_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the training's means by step as CSV: step, loss and its parts, gradient norm, rate.

    A classifier's has its accuracy. A mean of steps of which none was finite is `nan`.
    """
    names = [name for name in CURVE if any(name in row for row in history)]
    lines = [",".join(names)] + [
        ",".join(f"{row.get(name, math.nan):.6g}" for name in names) for row in history
    ]
    write_text(path, "\n".join(lines) + "\n")


def _values(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def _key(folder: Path) -> str | None:
    key = _values(folder / "run.json").get("key")
    return str(key) if key else None


def _pid(folder: Path) -> object:
    return _values(folder / "run.json").get("pid", "unknown")


def _discard(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
