"""Find a state of another training from which a new one can resume, or explain why there is none.

A state fits if everything that computed its steps is equal: the settings except `train.steps` and `train.lr`,
the learning rates of these steps, and the code. Nothing else in a step depends on the length of a training:
batches, noise and the average are functions of the step.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ValidationError

from diffusion.code_digest import ModuleDigests, changed_modules, code_digest
from diffusion.system.errors import DiffctlWarning
from diffusion.system.json_files import JsonObject
from diffusion.system.section import PositiveInt
from diffusion.train.checkpoint.run_record import CODE, CONFIG, HEARTBEAT, changed_fields, read_note
from diffusion.train.checkpoint.state_files import READ_ERRORS, newest_step, read_state, state_files, step_of
from diffusion.train.lr_schedule import LRSchedule, first_divergent_step, parse_lr

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

    @classmethod
    def of(cls, settings: JsonObject) -> "_LRKey | None":
        """Return the fields of a training's settings; None for invalid settings."""
        try:
            return cls.model_validate(settings.get("train"))
        except ValidationError:
            return None


class _SiblingRun(NamedTuple):
    """A training that differs in its learning rates or length alone.

    `fields` describes what differs. `diverges_at` is the first step with another rate, None without one.
    """

    folder: Path
    fields: str
    diverges_at: int | None

    def effect(self) -> str:
        """Describe the effect of the differing fields on the learning rates."""
        if self.diverges_at is None:
            return f"{self.fields} changes no step before"
        return f"{self.fields} changes the rate from step {self.diverges_at:,} on"

    def last_common_step(self, ours: _LRKey) -> int:
        """Return the last step whose state both trainings share."""
        return ours.steps if self.diverges_at is None else min(ours.steps, self.diverges_at)


def find_resume_point(folder: Path, settings: JsonObject, code: ModuleDigests) -> ResumePoint | None:
    """Return the furthest intact state of a sibling of `folder` that fits these settings and this code.

    None if there is none. A damaged state is reported and skipped.
    """
    key, digest = _LRKey.of(settings), code_digest(code)
    if key is None:
        return None
    usable = [
        (step_of(path), path, sibling)
        for sibling in _siblings_with(folder, settings, key)
        for path in state_files(sibling.folder)
        if 0 < step_of(path) <= sibling.last_common_step(key)
    ]
    for _, path, sibling in sorted(usable, key=lambda one: one[0], reverse=True):
        try:
            state = read_state(path)
        except FileNotFoundError:  # a running training has replaced it by a newer one
            continue
        except READ_ERRORS as error:
            warnings.warn(f"{path} is damaged ({error}): it is not used", DiffctlWarning, stacklevel=2)
            continue
        if {since.digest for since in state.values.code} == {digest}:
            return ResumePoint(path, sibling.effect())
    return None


def why_from_scratch(folder: Path, settings: JsonObject, code: ModuleDigests) -> str | None:
    """Explain why no sibling of `folder` has a usable state; None without siblings.

    In this order: the code changed, the learning rates diverge too early, or other settings changed since the
    newest sibling.
    """
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
    if (key := _LRKey.of(settings)) and (divergence := _early_divergence(folder, settings, key, code)):
        return divergence
    fields = ", ".join(changed_fields(read_note(others[-1] / CONFIG), settings))
    return f"starts from scratch, since the configuration changed: {fields} (against {others[-1]})"


def _early_divergence(folder: Path, settings: JsonObject, key: _LRKey, code: ModuleDigests) -> str | None:
    """Name a sibling whose first saved state is after the last common step; None without one."""
    for sibling in _siblings_with(folder, settings, key):
        first = min((step_of(path) for path in state_files(sibling.folder)), default=0)
        if first > sibling.last_common_step(key) and read_note(sibling.folder / CODE) == code:
            effect = f"{sibling.fields} ends it" if sibling.diverges_at is None else sibling.effect()
            return (
                f"starts from scratch, since {effect}, before step {first:,}, the first that is saved in "
                f"{sibling.folder}"
            )
    return None


def find_kept_run(folder: Path, settings: JsonObject) -> Path | None:
    """Return the newest sibling with these settings that has a state: the source of `--keep`."""
    same = (other for other in reversed(sibling_runs(folder)) if read_note(other / CONFIG) == settings)
    return next((other for other in same if newest_step(other)), None)


def sibling_runs(folder: Path) -> list[Path]:
    """Return the run directories next to `folder`, the newest last."""
    others = [path.parent for path in folder.parent.glob(f"*/{CONFIG}") if path.parent != folder]
    return sorted(others, key=lambda other: (other / HEARTBEAT).stat().st_mtime_ns)


def _siblings_with(folder: Path, settings: JsonObject, key: _LRKey) -> Iterator[_SiblingRun]:
    """Yield the siblings that differ in `_LRKey` alone, or in averages that only they track, newest first."""
    left_out = set(_LRKey.model_fields) | ({AVERAGES} if AVERAGES not in settings["train"] else set())
    for other in reversed(sibling_runs(folder)):
        theirs = read_note(other / CONFIG)
        their_key = _LRKey.of(theirs)
        if their_key is not None and _without(left_out, theirs) == _without(left_out, settings):
            diverges_at = first_divergent_step(key.lr, key.steps, their_key.lr, their_key.steps)
            yield _SiblingRun(other, ", ".join(changed_fields(theirs, settings)), diverges_at)


def _without(left_out: set[str], settings: JsonObject) -> JsonObject:
    train = {key: value for key, value in settings["train"].items() if key not in left_out}
    return {**settings, "train": train}
