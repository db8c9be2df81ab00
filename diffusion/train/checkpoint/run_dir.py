"""The run directory of one training, `runs/train/<fingerprint>/`: its lock, notes, states and EMA snapshots.

A snapshot is written before the state of its step, so that the directory has every snapshot up to the newest
saved state.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from diffusion.code_digest import ModuleDigests
from diffusion.layout import TRAIN_RUNS
from diffusion.model.model_file import Artefact, read_artefact, read_weights, save_artefact
from diffusion.model.posthoc_ema import snapshot_files, snapshot_path, snapshot_step
from diffusion.system.checksums import JsonObject, add_checksum
from diffusion.system.devices import OnWait, is_out_of_memory
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.files import atomic_folder, copy_file, disk_errors, sync_path, write_json
from diffusion.system.locks import file_lock
from diffusion.system.section import brief
from diffusion.train.checkpoint.resume import (
    AVERAGES,
    ResumePoint,
    find_kept_run,
    find_resume_point,
    why_from_scratch,
)
from diffusion.train.checkpoint.run_record import CODE, CONFIG, HEARTBEAT, SNAPSHOTS, Heartbeat, read_note
from diffusion.train.checkpoint.state_files import SavedState, StateWriter, newest_step, state_files
from diffusion.train.checkpoint.state_mirror import VARIABLE, StateMirror
from diffusion.train.plan import (
    TrainPlan,
    plan_artefact,
    training_code,
    training_fingerprint,
    training_settings,
)
from diffusion.train.train_config import OptimisationConfig

if TYPE_CHECKING:
    from diffusion.train.train_state import TrainState

# The spool, its progress and the files that it names: MLflow may lack some of it.
LOGGED = ("events.jsonl", "events.rejected", "sent.json", "outbox", "previews", "checkpoints")


@dataclass(frozen=True)
class RunDir:
    """A run directory that this process has locked.

    `key` identifies the training in MLflow. `is_new` is whether the directory is new. `start` is the state of
    another training with which it was initialised. `fetched` is the step of the state that came from the
    `mirror`, 0 without one.
    """

    folder: Path
    key: str
    is_new: bool = True
    start: ResumePoint | None = None
    mirror: StateMirror | None = None
    fetched: int = 0

    @cached_property
    def writer(self) -> StateWriter:
        """The writer of its states."""
        return StateWriter(self.folder)

    @contextmanager
    def saving(self, on_wait: OnWait = lambda sentence: None) -> Iterator[None]:
        """Write states, and copy them to the mirror, in threads during the block.

        `on_wait` is called if the end waits for a copy.
        """
        mirror = self.mirror.in_background(on_wait) if self.mirror else nullcontext()
        with mirror, self.writer.in_background():
            yield

    def beat(self, step: int) -> None:
        """Write the heartbeat, which is read on other machines too."""
        now = Heartbeat(key=self.key, pid=os.getpid(), step=step, heartbeat=round(time.time(), 3))
        write_json(self.folder / HEARTBEAT, add_checksum(now.model_dump()))

    def changes(self) -> str | None:
        """Explain why a new training starts from scratch; None if it resumes or has no siblings."""
        if not self.is_new:
            return None
        return why_from_scratch(self.folder, read_note(self.folder / CONFIG), read_note(self.folder / CODE))

    def keep(self) -> Path | None:
        """Copy the states of the newest sibling by other code, if it is further, and return its directory.

        UsageError if there is no state, neither of a sibling nor here.
        """
        other = find_kept_run(self.folder, read_note(self.folder / CONFIG))
        if other is None and newest_step(self.folder):
            return None
        if other is None:
            if self.is_new:  # so that a start without --keep may resume from another training
                (self.folder / CONFIG).unlink()
            missing = f"{self.folder.parent} has no training with these settings"
            raise UsageError(f"--keep: {missing}: leave it out")
        with file_lock(other / "lock", timeout=0, busy=f"{other} is still training: stop it first"):
            copy_snapshots(other, self.folder, newest_step(other))
            for path in state_files(other):
                copy_file(path, self.folder / path.name)
        return other


def restore_state(state: "TrainState", saved: SavedState | None, what: str) -> None:
    """Restore `saved`, if there is one, into `state`; DiffctlError naming `what` if it does not fit."""
    try:
        if saved is not None:
            state.restore(saved)
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            remedy = "free the device's memory and run the same command again"
            raise DiffctlError(f"{what} does not fit the memory: {remedy}") from None
        why = brief(error, reason)
        raise DiffctlError(f"{what} cannot be restored ({why}): `diffctl run --fresh` discards it") from None


@contextmanager
def open_run(
    root: Path,
    fingerprint: str,
    *,
    fresh: bool = False,
    config: JsonObject | None = None,
    code: ModuleDigests | None = None,
    resume: bool = False,
) -> Iterator[RunDir]:
    """Lock the run directory for this process; `fresh` discards its content.

    `config` and `code` are what the fingerprint was computed from, and are recorded. With `resume` a new
    directory is initialised from the state that `find_resume_point` returns, unless the mirror has one. The
    lock ends with the process. DiffctlError if another process holds it.
    """
    folder = root / fingerprint
    beat = read_note(folder / HEARTBEAT)
    process = beat.get("pid", "unknown")
    busy = f"this training is already running (process {process}, {folder}): wait for it or stop it"
    with file_lock(folder / "lock", timeout=0, busy=busy):
        is_new = not (folder / CONFIG).exists()
        url = os.environ.get(VARIABLE)
        mirror, fetched, start = StateMirror(url, folder) if url else None, 0, None
        if fresh:
            if mirror:
                mirror.discard()  # first: if it cannot be reached, nothing is lost
            _discard(folder, beat.get("key"))
            beat = {}  # a new training, in MLflow too
        for torn in folder.glob(".state-*.tmp"):  # of a save that was killed
            torn.unlink()
        if mirror and not fresh:
            fetched = mirror.fetch()
        config, code = config or {}, code or {}
        if resume and is_new and not fresh and not fetched:
            start = _copy_start(folder, config, code)
        run = RunDir(folder, str(beat.get("key") or uuid.uuid4().hex), is_new, start, mirror, fetched)
        run.beat(0)
        write_json(folder / CODE, add_checksum(code))
        write_json(folder / CONFIG, add_checksum(config))
        sync_path(root)
        yield run


def _copy_start(folder: Path, config: JsonObject, code: ModuleDigests) -> ResumePoint | None:
    """Copy the state that `find_resume_point` returns, after its snapshots; return it."""
    while start := find_resume_point(folder, config, code):
        try:
            if AVERAGES in config["train"]:
                copy_snapshots(start.folder, folder, start.step)
            copy_file(start.path, folder / start.path.name)
            break
        except FileNotFoundError:
            if start.path.exists():
                raise  # else the other training continues, and has a newer one
    return start


@contextmanager
def open_training(
    plan: TrainPlan, root: Path = TRAIN_RUNS, *, fresh: bool = False, keep: bool = False
) -> Iterator[RunDir]:
    """Open the run directory of the plan's training, as `open_run`.

    A new directory is initialised from the furthest fitting state of another training, unless `fresh` or
    `keep` is set. `keep` copies the states of a training by other code that is further.
    """
    folder, settings, code = run_dir_of(plan, root)
    with open_run(root, folder.name, fresh=fresh, config=settings, code=code, resume=not keep) as run:
        if keep:
            run.keep()
        yield run


def run_dir_of(plan: TrainPlan, root: Path) -> tuple[Path, dict[str, Any], ModuleDigests]:
    """Return the run directory of the plan's training in `root`, its settings and its code."""
    train = plan.train
    code = training_code(type(plan), plan.process, plan.network, train.lr.schedule, train.optimizer)
    return root / training_fingerprint(plan), training_settings(plan), code


def _discard(folder: Path, key: object) -> None:
    """Remove everything except locks; move a log that MLflow lacks to a folder, for `diffctl sync`."""
    logged = () if _is_delivered(folder, key) else LOGGED
    kept = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}")
    for entry in folder.iterdir():
        if entry.name in logged:
            kept.mkdir(exist_ok=True)
            entry.rename(kept / entry.name)
        elif entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.endswith("lock"):  # without its file, others could acquire a second one
            entry.unlink()


def _is_delivered(folder: Path, key: object) -> bool:
    """Return whether MLflow has the whole log of the training `key`, which ended."""
    if not (log := folder / LOGGED[0]).exists():
        return True
    content, sent = log.read_bytes(), read_note(folder / "sent.json")
    has_ended = b'"kind":"status"' in content.rpartition(b"\n{")[2]
    return has_ended and (sent.get("key"), sent.get("offset")) == (key, len(content))


def save_snapshots(folder: Path, state: "TrainState", profiles: Sequence[nn.Module]) -> None:
    """Save the EMA profiles of a state, in full, in a run directory; DiffctlError if the disk is full."""
    artefact = plan_artefact(state.plan, state.code)
    for profile, sigma_rel in zip(profiles, state.plan.train.sigma_rels, strict=True):
        path = snapshot_path(folder / SNAPSHOTS, sigma_rel, state.step)
        metadata = artefact.model_copy(update={"step": state.step, "ema_sigma_rel": sigma_rel})
        with disk_errors(f"the averages of step {state.step:,} in {path.parent}"):
            save_artefact(path, profile.state_dict(), metadata)


def copy_snapshots(source: Path, folder: Path, step: int) -> None:
    """Copy the snapshots up to a step from another run directory."""
    for path in snapshot_files(source / SNAPSHOTS):
        if snapshot_step(path) <= step:
            copy_file(path, folder / SNAPSHOTS / path.name)


def publish_snapshots(folder: Path, out: Path, config: OptimisationConfig, artefact: Artefact) -> None:
    """Write the snapshots of a finished training to `out`, an empty folder if it has none.

    Their metadata is that of `artefact`, also for snapshots that were copied from another training.
    DiffctlError for a missing or damaged one.
    """
    with atomic_folder(out) as made:
        for sigma_rel in config.sigma_rels:
            for step in config.snapshot_steps():
                path = snapshot_path(folder / SNAPSHOTS, sigma_rel, step)
                if not path.is_file():
                    raise DiffctlError(
                        f"{path} is missing: `diffctl run --fresh` trains from scratch, and "
                        "`train.ema_profiles: null` finishes without snapshots"
                    )
                metadata = artefact.model_copy(update={"step": step, "ema_sigma_rel": sigma_rel})
                weights = read_weights(path, read_artefact(path))
                save_artefact(snapshot_path(made, sigma_rel, step), weights, metadata)
