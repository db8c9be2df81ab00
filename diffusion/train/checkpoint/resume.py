"""Find a state of another training from which a new one can resume, or explain why no state fits.

A state fits if everything that computed its steps is equal: the settings except `train.steps` and `train.lr`,
the learning rates of these steps, and the code. Nothing else in a step depends on the length of a training:
batches, noise and the average are functions of the step.
"""

import warnings
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ValidationError

from diffusion.code_digest import ModuleDigests, changed_modules, code_digest
from diffusion.system.checksums import JsonObject
from diffusion.system.errors import DiffctlWarning
from diffusion.system.params import changed_fields
from diffusion.system.section import PositiveInt
from diffusion.train.checkpoint.run_record import CODE, CONFIG, HEARTBEAT, read_note
from diffusion.train.checkpoint.state_files import (
    READ_ERRORS,
    newest_step,
    read_state,
    refuse_unreadable,
    state_files,
    step_of,
)
from diffusion.train.optimizers.lr_schedule import LRSchedule, first_divergent_step, parse_lr

AVERAGES = "ema_profiles"  # the field of `train` that a training without averages may lack


class ResumePoint(NamedTuple):
    """A state of another training from which this one resumes; `why` is how the two trainings differ."""

    path: Path
    why: str

    @property
    def step(self) -> int:
        """The state's step."""
        return step_of(self.path)

    @property
    def folder(self) -> Path:
        """The other training's run directory."""
        return self.path.parent

    def describe(self) -> str:
        """Describe the resume in one sentence."""
        return f"resumes from step {self.step:,} of {self.folder}: {self.why}"


class _LRKey(BaseModel):
    """The fields of `train` that may differ: they decide the learning rates and the last step."""

    steps: PositiveInt
    lr: Annotated[LRSchedule, BeforeValidator(parse_lr)]


def find_resume_point(folder: Path, settings: JsonObject, code: ModuleDigests) -> ResumePoint | None:
    """Return the furthest fitting state of a sibling of `folder`, or None; report damaged ones."""
    digest = code_digest(code)
    points: list[ResumePoint] = []
    for other in reversed(sibling_runs(folder)):
        theirs = read_note(other / CONFIG)
        if (common := _usable_steps(theirs, settings)) is not None:
            last, why = common
            why = f"{', '.join(changed_fields(theirs, settings))} {why}"
            points += [ResumePoint(path, why) for path in state_files(other) if 0 < step_of(path) <= last]
    for point in sorted(points, key=lambda point: point.step, reverse=True):
        try:
            state = read_state(point.path)
        except FileNotFoundError:  # its training continues, and has newer ones
            continue
        except READ_ERRORS as error:
            refuse_unreadable(point.path, error)
            warnings.warn(f"{point.path} is damaged ({error}): it is not used", DiffctlWarning, stacklevel=2)
            continue
        if {since.digest for since in state.values.code} == {digest}:
            return point
    return None


def why_from_scratch(folder: Path, settings: JsonObject, code: ModuleDigests) -> str | None:
    """Explain which change of code or settings leaves no sibling's state usable; None without siblings."""
    others = sibling_runs(folder)
    if not others:
        return None
    same = [other for other in others if read_note(other / CONFIG) == settings]
    if same:
        modules = ", ".join(changed_modules(read_note(same[-1] / CODE), code))
        return (
            f"starts from scratch, since the training's code has changed in {modules} since step "
            f"{newest_step(same[-1]):,} (in {same[-1]}): `diffctl run --keep` resumes from there instead"
        )
    theirs = read_note(others[-1] / CONFIG)
    fields, common = ", ".join(changed_fields(theirs, settings)), _usable_steps(theirs, settings)
    if common and not any(0 < step_of(path) <= common[0] for path in state_files(others[-1])):
        last = f"step {common[0]:,}, the last that it could resume from"
        return f"starts from scratch: {others[-1]} has no state up to {last} ({fields})"
    return f"starts from scratch, since the configuration changed: {fields} (against {others[-1]})"


def find_kept_run(folder: Path, settings: JsonObject) -> Path | None:
    """Return the newest sibling with these settings and a state, if it is further: the source of `--keep`."""
    same = (other for other in reversed(sibling_runs(folder)) if read_note(other / CONFIG) == settings)
    newest = next((other for other in same if newest_step(other)), None)
    return newest if newest and newest_step(newest) > newest_step(folder) else None


def sibling_runs(folder: Path) -> list[Path]:
    """Return the run directories next to `folder`, the newest last."""
    others = [path.parent for path in folder.parent.glob(f"*/{CONFIG}") if path.parent != folder]
    beats = {path.parent: path.stat().st_mtime_ns for path in folder.parent.glob(f"*/{HEARTBEAT}")}
    return sorted(others, key=lambda other: beats.get(other, 0))


def _usable_steps(theirs: JsonObject, settings: JsonObject) -> tuple[int, str] | None:
    """Return the last step to resume from, and how two trainings differ; None if no step is equal.

    The last step of a training has a log entry and a snapshot, also between two intervals. So a state of a
    longer training must be from before it.
    """
    train = settings.get("train", {})
    left_out = set(_LRKey.model_fields) | ({AVERAGES} if AVERAGES not in train else set())
    if _without(left_out, theirs) != _without(left_out, settings):
        return None
    try:
        key, ours = (_LRKey.model_validate(one) for one in (theirs.get("train", {}), train))
    except ValidationError:  # a schedule is of a plugin that was removed
        return None
    last = ours.steps if key.steps <= ours.steps else ours.steps - 1
    why = "changes no step before"
    if (diverges_at := first_divergent_step(ours.lr, ours.steps, key.lr, key.steps)) is not None:
        last, why = min(last, diverges_at), f"changes the rate from step {diverges_at:,} on"
    return (last, why) if last else None


def _without(left_out: set[str], settings: JsonObject) -> JsonObject:
    train = {key: value for key, value in settings.get("train", {}).items() if key not in left_out}
    return {**settings, "train": train}
