"""The folder of one training, `runs/train/<fingerprint>/`: its lock, its identity and its newest state."""

import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.code import Code, changed_modules
from diffusion.layout import TRAIN_RUNS
from diffusion.system.documents import Values
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, reason
from diffusion.system.files import sync_folder, write_json, write_text
from diffusion.system.locks import file_lock
from diffusion.system.seals import read_sealed_document, sealed
from diffusion.system.section import brief
from diffusion.train.config_diff import changed_fields
from diffusion.train.heartbeat import BEAT, Heartbeat, read_heartbeat
from diffusion.train.identity import TrainPlan, training_code, training_fingerprint, training_settings
from diffusion.train.state import Resumable
from diffusion.train.state_file import copy_states, newest_state, newest_step, save_state

# In a training's folder: what its fingerprint was made of.
CONFIG = "config.json"
CODE = "code.json"
DIGITS = {"step": 12}  # of a value in the curve, where not 6
CURVE = ("step", "loss", "accuracy", "mse", "vlb", "grad_norm", "lr", "skipped_steps")


@dataclass(frozen=True)
class RunFolder:
    """An open training folder. `key` names this training wherever it is tracked; `is_new` in a new folder."""

    folder: Path
    key: str
    is_new: bool = True

    def beat(self, step: int) -> None:
        """Say that this process is alive and how far it is, for who looks from another machine."""
        said = Heartbeat(key=self.key, pid=os.getpid(), step=step, heartbeat=round(time.time(), 3))
        write_json(self.folder / BEAT, sealed(said.model_dump()))

    def save(self, state: Resumable) -> None:
        """Keep the state; DiffctlError on a full disk, the state before it stays."""
        save_state(self.folder, state.saved())

    def restore(self, state: Resumable) -> bool:
        """Bring `state` to the newest whole saved one; False when there is none."""
        saved = newest_state(self.folder)
        if saved is not None:
            try:
                state.restore(saved)
            except (
                LookupError,
                ValueError,
                TypeError,
                RuntimeError,
            ) as error:  # names or shapes of other parts
                raise DiffctlError(
                    f"the state in {self.folder} is of another training ({brief(error, reason)}): "
                    "`diffctl run --fresh` discards it"
                ) from None
        return saved is not None

    def changes(self) -> str | None:
        """Why a new training goes on with no other one, as a sentence; None without others.

        One of the same configuration was made by other code; else the newest one is compared with.
        """
        others = _others(self.folder)
        if not (self.is_new and others and (self.folder / CONFIG).exists()):
            return None
        same = [other for other in others if _values(other / CONFIG) == _values(self.folder / CONFIG)]
        if same:
            codes = (_values(folder / CODE) for folder in (same[-1], self.folder))
            modules, step = ", ".join(changed_modules(*codes)), newest_step(same[-1])
            return (
                f"begun afresh, since the training's code has changed in {modules} since step {step:,} "
                f"(in {same[-1]}): `diffctl run --keep` goes on from there instead"
            )
        fields = ", ".join(changed_fields(_values(others[-1] / CONFIG), _values(self.folder / CONFIG)))
        return f"begun afresh, since the configuration is another one: {fields} (against {others[-1]})"

    def keep(self) -> Path:
        """Go on from the newest training of this configuration by other code; returns its folder.

        Its states are copied. UsageError when there is none that has one.
        """
        if other := kept_by(self.folder, _values(self.folder / CONFIG)):
            with file_lock(other / "lock", timeout=0, busy=f"{other} is still training: stop it first"):
                copy_states(other, self.folder)
            return other
        raise UsageError(
            "--keep goes on from a training of this configuration by other code, and there is none in "
            f"{self.folder.parent}: leave it out"
        )


@contextmanager
def open_run(
    root: Path,
    fingerprint: str,
    *,
    fresh: bool = False,
    config: dict[str, Any] | None = None,
    code: Code | None = None,
) -> Iterator[RunFolder]:
    """Hold the training's folder for this process alone; `fresh` discards what is there.

    `config` and `code` are what the fingerprint was made of, kept for `RunFolder.changes`. The lock is the
    process's own and dies with it. DiffctlError when another process holds it.
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
        run = RunFolder(folder, beat.key if beat else uuid.uuid4().hex, is_new)
        run.beat(0)
        if code is not None:
            write_json(folder / CODE, sealed(code))
        if config is not None:
            write_json(folder / CONFIG, sealed(config))
        sync_folder(root)
        yield run


@contextmanager
def open_training(
    plan: TrainPlan, root: Path = TRAIN_RUNS, *, fresh: bool = False, keep: bool = False
) -> Iterator[RunFolder]:
    """The folder of the training of the `plan`, as `open_run`; `keep` as `RunFolder.keep`.

    Where this code has saved a state already, `keep` goes on from that one.
    """
    settings, code = training_settings(plan), training_code(type(plan), plan.process, plan.network)
    with open_run(root, training_fingerprint(plan), fresh=fresh, config=settings, code=code) as run:
        if keep and not newest_step(run.folder):
            run.keep()
        yield run


def kept_by(folder: Path, config: dict[str, Any]) -> Path | None:
    """The newest other training of this configuration that has a state: what `keep` would go on from."""
    same = (other for other in reversed(_others(folder)) if _values(other / CONFIG) == config)
    return next((other for other in same if newest_step(other)), None)


def _others(folder: Path) -> list[Path]:
    """The folders of the other trainings, the newest last."""
    others = [path.parent for path in folder.parent.glob(f"*/{CONFIG}") if path.parent != folder]
    return sorted(others, key=lambda other: (other / BEAT).stat().st_mtime_ns)


def write_loss_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the training's means by step as CSV: step, loss and its parts, gradient norm, rate.

    A classifier's has its accuracy. A mean of steps of which none was finite is `nan`.
    """
    names = [name for name in CURVE if any(name in row for row in history)]
    lines = [",".join(names)] + [
        ",".join(f"{row.get(name, math.nan):.{DIGITS.get(name, 6)}g}" for name in names) for row in history
    ]
    write_text(path, "\n".join(lines) + "\n")


def _values(path: Path) -> Values:
    """What the file says; nothing where it is not there or damaged, which is told."""
    try:
        return read_sealed_document(path, Values)
    except FileNotFoundError:
        return {}
    except DiffctlError as error:
        _tell_damaged(error)
        return {}


def _beat(folder: Path) -> Heartbeat | None:
    """The training's last sign of life; None where none is there or it is damaged, which is told."""
    try:
        return read_heartbeat(folder)
    except DiffctlError as error:
        _tell_damaged(error)
        return None


def _tell_damaged(error: DiffctlError) -> None:
    warnings.warn(f"{error}: it counts for nothing", DiffctlWarning, stacklevel=3)


def _discard(folder: Path) -> None:
    """Remove everything but the locks: one that is held must keep its name, or another could be had."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.endswith("lock"):
            entry.unlink()
