"""The folder of one training, `runs/train/<fingerprint>/`: its lock, its identity and its newest state."""

import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion.code_digest import ModuleDigests
from diffusion.layout import TRAIN_RUNS
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.files import sync_folder, write_json, write_text
from diffusion.system.locks import file_lock
from diffusion.system.section import brief
from diffusion.train.checkpoint.ema_snapshots import copy_snapshots
from diffusion.train.checkpoint.resumable import Resumable
from diffusion.train.checkpoint.resume import (
    AVERAGES,
    CODE,
    CONFIG,
    ResumePoint,
    find_kept_run,
    find_resume_point,
    read_note,
    warn_damaged,
    why_from_scratch,
)
from diffusion.train.checkpoint.run_record import HEARTBEAT, Heartbeat, read_heartbeat
from diffusion.train.checkpoint.state_files import (
    SavedState,
    copy_state,
    copy_states,
    newest_state,
    newest_step,
)
from diffusion.train.checkpoint.state_writer import StateWriter
from diffusion.train.plan import TrainPlan, training_code, training_fingerprint, training_settings
from diffusion.train.validation_loss import PARTS, PREFIX

DIGITS = {"step": 12}  # of a value in the curve, where not 6
TRAINED = ("step", "loss", "accuracy", "mse", "vlb", "grad_norm", "lr", "skipped_steps")
CURVE = (*TRAINED, *(f"{PREFIX}{part}" for part in PARTS))


Share = Callable[[SavedState | None], SavedState | None]
"""What several processes make of the first one's saved state, so that all begin with it."""


@dataclass(frozen=True)
class RunDir:
    """An open training folder. `key` names this training wherever it is tracked; `is_new` in a new folder.

    `start` is the state of another training that it has begun with.
    """

    folder: Path
    key: str
    is_new: bool = True
    start: ResumePoint | None = None

    @cached_property
    def writer(self) -> StateWriter:
        """Who writes its states."""
        return StateWriter(self.folder)

    def beat(self, step: int) -> None:
        """Say that this process is alive and how far it is, for who looks from another machine."""
        said = Heartbeat(key=self.key, pid=os.getpid(), step=step, heartbeat=round(time.time(), 3))
        write_json(self.folder / HEARTBEAT, add_checksum(said.model_dump()))

    def save(self, state: Resumable) -> None:
        """Keep the state, as `StateWriter.save`; DiffctlError on a full disk, the state before it stays."""
        self.writer.save(state.saved())

    def restore(self, state: Resumable, share: Share = lambda saved: saved) -> bool:
        """Bring `state` to what becomes of the newest whole saved one by `share`; False when that is none."""
        return restore_state(state, share(newest_state(self.folder)), f"the state in {self.folder}")

    def changes(self) -> str | None:
        """Why a new training goes on with no other one, as a sentence; None without others."""
        if not self.is_new or not (self.folder / CONFIG).exists():
            return None
        return why_from_scratch(self.folder, read_note(self.folder / CONFIG), read_note(self.folder / CODE))

    def keep(self) -> Path:
        """Go on from the newest training of this configuration by other code; returns its folder.

        Its states are copied. UsageError when there is none that has one.
        """
        if other := find_kept_run(self.folder, read_note(self.folder / CONFIG)):
            with file_lock(other / "lock", timeout=0, busy=f"{other} is still training: stop it first"):
                copy_snapshots(other, self.folder, newest_step(other))
                copy_states(other, self.folder)
            return other
        raise UsageError(
            "--keep goes on from a training of this configuration by other code, and there is none in "
            f"{self.folder.parent}: leave it out"
        )


def restore_state(state: Resumable, saved: SavedState | None, what: str) -> bool:
    """Bring `state` to the saved one, if there is one; DiffctlError says of `what` why that cannot be."""
    if saved is None:
        return False
    try:
        state.restore(saved)
    except OSError as error:  # the disk fails at what it has given a moment ago
        raise DiffctlError(f"{what} cannot be read ({error.strerror or error}): run it again") from None
    except (LookupError, ValueError, TypeError, RuntimeError) as error:  # names or shapes of other parts
        raise DiffctlError(
            f"{what} is of another training ({brief(error, reason)}): `diffctl run --fresh` discards it"
        ) from None
    return True


@contextmanager
def open_run(
    root: Path,
    fingerprint: str,
    *,
    fresh: bool = False,
    config: dict[str, Any] | None = None,
    code: ModuleDigests | None = None,
    go_on: bool = False,
) -> Iterator[RunDir]:
    """Hold the training's folder for this process alone; `fresh` discards what is there.

    `config` and `code` are what the fingerprint was made of, kept for `others`. With `go_on` a new folder
    begins with the state that `find_resume_point` finds. The lock is the process's own and dies with it.
    DiffctlError when another process holds it.
    """
    folder = root / fingerprint
    beat = _beat(folder)
    process = beat.pid if beat else "unknown"
    busy = f"this training is already running (process {process}, {folder}): wait for it or stop it"
    with file_lock(folder / "lock", timeout=0, busy=busy):
        is_new = not (folder / CONFIG).exists()
        if fresh:
            _discard(folder)
            beat = None  # it is another training from here on, in MLflow too
        for torn in folder.glob(".state-*.tmp"):  # of a save that was killed
            torn.unlink()
        start = None
        if go_on and is_new and not fresh and config is not None and code is not None:
            start = _begin_with(folder, config, code)
        run = RunDir(folder, beat.key if beat else uuid.uuid4().hex, is_new, start)
        run.beat(0)
        if code is not None:
            write_json(folder / CODE, add_checksum(code))
        if config is not None:
            write_json(folder / CONFIG, add_checksum(config))
        sync_folder(root)
        yield run


@contextmanager
def open_training(
    plan: TrainPlan, root: Path = TRAIN_RUNS, *, fresh: bool = False, keep: bool = False
) -> Iterator[RunDir]:
    """The folder of the training of the `plan`, as `open_run`; `keep` as `RunDir.keep`.

    Where this code has saved a state already, `keep` goes on from that one. A new folder begins with the
    furthest state of another training whose steps so far are its own, but for `fresh` and `keep`.
    """
    folder, settings, code = run_dir_of(plan, root)
    with open_run(root, folder.name, fresh=fresh, config=settings, code=code, go_on=not keep) as run:
        if keep and not newest_step(run.folder):
            run.keep()
        yield run


def run_dir_of(plan: TrainPlan, root: Path) -> tuple[Path, dict[str, Any], ModuleDigests]:
    """The folder of the plan's training in `root`, and what its name is made of: settings and code."""
    code = training_code(type(plan), plan.process, plan.network)
    return root / training_fingerprint(plan), training_settings(plan), code


def _begin_with(folder: Path, config: dict[str, Any], code: ModuleDigests) -> ResumePoint | None:
    """Bring the state that a new training may go on from into its folder; None when there is none."""
    while start := find_resume_point(folder, config, code):
        with suppress(FileNotFoundError):  # of a training that runs, and has dropped it for a newer one
            if AVERAGES in config["train"]:
                copy_snapshots(start.folder, folder, start.step)
            copy_state(start.path, folder)
            return start
    return None


def write_loss_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the training's means by step as CSV: step, loss and its parts, gradient norm, rate.

    A classifier's curve has its accuracy. Validation losses follow where they were measured. A mean without
    a finite step is `nan`, and so is a value that was not measured.
    """
    names = [name for name in CURVE if any(name in row for row in history)]
    lines = [",".join(names)] + [
        ",".join(f"{row.get(name, math.nan):.{DIGITS.get(name, 6)}g}" for name in names) for row in history
    ]
    write_text(path, "\n".join(lines) + "\n")


def _beat(folder: Path) -> Heartbeat | None:
    """The training's last sign of life; None where none is there or it is damaged, which is told."""
    try:
        return read_heartbeat(folder)
    except DiffctlError as error:
        warn_damaged(error)
        return None


def _discard(folder: Path) -> None:
    """Remove everything but the locks: one that is held must keep its name, or another could be had."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.endswith("lock"):
            entry.unlink()
