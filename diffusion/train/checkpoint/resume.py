"""The other trainings beside a folder: from whose state a new one goes on, or why from none of them.

A state is found by what made it. One of another training will do when all that computed its steps is equal:
the settings but for `train.steps` and `train.lr`, the rates of these steps, and the code. For nothing else in
a step hangs on how long the training is: batches, noise and the average are functions of the step.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ValidationError

from diffusion.code_digest import ModuleDigests, changed_modules, code_digest
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.json_files import JsonObject
from diffusion.system.section import PositiveInt
from diffusion.train.checkpoint.run_record import HEARTBEAT
from diffusion.train.checkpoint.state_files import READ_ERRORS, newest_step, read_state, state_files, step_of
from diffusion.train.config_diff import changed_fields
from diffusion.train.lr_schedule import LRSchedule, first_divergent_step, parse_lr

# In a training's folder: what its fingerprint was made of.
CONFIG = "config.json"
CODE = "code.json"

AVERAGES = "ema_profiles"  # the field of `train` that a training without them goes on without


class ResumePoint(NamedTuple):
    """A state of another training that one may go on from; `why` is how the two trainings differ."""

    path: Path
    why: str

    @property
    def step(self) -> int:
        """After how many steps it was saved."""
        return step_of(self.path)

    @property
    def folder(self) -> Path:
        """The other training's folder."""
        return self.path.parent

    def describe(self) -> str:
        """That a training goes on from it, in words."""
        return f"goes on from step {self.step:,} of {self.folder}: {self.why}"


class _LRKey(BaseModel):
    """The fields of `train` that a state's steps need not have in common."""

    steps: PositiveInt
    lr: Annotated[LRSchedule, BeforeValidator(parse_lr)]

    @classmethod
    def of(cls, settings: JsonObject) -> "_LRKey | None":
        """That of a training's settings; None where they are of no training."""
        try:
            return cls.model_validate(settings.get("train"))
        except ValidationError:
            return None


class _SiblingRun(NamedTuple):
    """Another training that differs in nothing but its pace.

    `fields` are what differs, in words, and `parting` the first step whose rate does, None where none does.
    """

    folder: Path
    fields: str
    parting: int | None

    def effect(self) -> str:
        """What the other fields do to the rates, in words."""
        if self.parting is None:
            return f"{self.fields} changes no step before"
        return f"{self.fields} changes the rate from step {self.parting:,} on"


def find_resume_point(folder: Path, settings: JsonObject, code: ModuleDigests) -> ResumePoint | None:
    """The furthest whole state beside `folder` that a training of these settings by this code goes on from.

    None where there is none. A damaged one is told and passed over.
    """
    pace, digest = _LRKey.of(settings), code_digest(code)
    if pace is None:
        return None
    usable = [
        (step_of(path), path, relative)
        for relative in _relatives(folder, settings, pace)
        for path in state_files(relative.folder)
        if 0 < step_of(path) <= _end(pace, relative)
    ]
    for _, path, relative in sorted(usable, key=lambda one: one[0], reverse=True):
        try:
            state = read_state(path)
        except FileNotFoundError:  # that training runs, and has dropped it for a newer one
            continue
        except READ_ERRORS as error:
            warnings.warn(
                f"{path} is damaged ({error}): nothing goes on from it", DiffctlWarning, stacklevel=2
            )
            continue
        if {since.digest for since in state.values.code} == {digest}:
            return ResumePoint(path, relative.effect())
    return None


def why_from_scratch(folder: Path, settings: JsonObject, code: ModuleDigests) -> str | None:
    """Why a training of these settings goes on with none of those beside `folder`; None without others.

    One of the same configuration was made by other code, and one that differs in its pace has kept no state
    from before they part; else the newest one is compared with.
    """
    others = sibling_runs(folder)
    if not others:
        return None
    same = [other for other in others if read_note(other / CONFIG) == settings]
    if same:
        modules, step = _changed_code(same[-1], code), newest_step(same[-1])
        return (
            f"begun afresh, since the training's code has changed in {modules} since step {step:,} "
            f"(in {same[-1]}): `diffctl run --keep` goes on from there instead"
        )
    if (pace := _LRKey.of(settings)) and (parted := _parted(folder, settings, pace, code)):
        return parted
    fields = ", ".join(changed_fields(read_note(others[-1] / CONFIG), settings))
    return f"begun afresh, since the configuration is another one: {fields} (against {others[-1]})"


def _parted(folder: Path, settings: JsonObject, pace: _LRKey, code: ModuleDigests) -> str | None:
    """Why a training that differs in its pace alone has no state for this one; None where there is none."""
    for relative in _relatives(folder, settings, pace):
        first = _first_step(relative.folder)
        if first > _end(pace, relative) and read_note(relative.folder / CODE) == code:
            effect = f"{relative.fields} ends it" if relative.parting is None else relative.effect()
            return (
                f"begun afresh, since {effect}, before step {first:,}, the first that is saved in "
                f"{relative.folder}"
            )
    return None


def find_kept_run(folder: Path, config: dict[str, Any]) -> Path | None:
    """The newest other training of this configuration that has a state: what `--keep` would go on from."""
    same = (other for other in reversed(sibling_runs(folder)) if read_note(other / CONFIG) == config)
    return next((other for other in same if newest_step(other)), None)


def sibling_runs(folder: Path) -> list[Path]:
    """The folders of the other trainings, the newest last."""
    others = [path.parent for path in folder.parent.glob(f"*/{CONFIG}") if path.parent != folder]
    return sorted(others, key=lambda other: (other / HEARTBEAT).stat().st_mtime_ns)


def read_note(path: Path) -> JsonObject:
    """What a training's note says; nothing where it is not there or damaged, which is told."""
    try:
        return read_checksummed_json(path, JsonObject)
    except FileNotFoundError:
        return {}
    except DiffctlError as error:
        warn_damaged(error)
        return {}


def warn_damaged(error: DiffctlError) -> None:
    """Warn of a note that is damaged."""
    warnings.warn(f"{error}: it counts for nothing", DiffctlWarning, stacklevel=3)


def _relatives(folder: Path, settings: JsonObject, pace: _LRKey) -> Iterator[_SiblingRun]:
    """The other trainings that differ from these settings in their pace alone, the newest first."""
    for other in reversed(sibling_runs(folder)):
        theirs = read_note(other / CONFIG)
        their_pace = _LRKey.of(theirs)
        if their_pace is not None and _same_steps(theirs, settings):
            parting = first_divergent_step(pace.lr, pace.steps, their_pace.lr, their_pace.steps)
            yield _SiblingRun(other, ", ".join(changed_fields(theirs, settings)), parting)


def _same_steps(theirs: JsonObject, ours: JsonObject) -> bool:
    """Whether two trainings differ in their pace alone, or in averages that only theirs tracks beside."""
    left_out = set(_LRKey.model_fields)
    if AVERAGES not in ours["train"]:
        left_out.add(AVERAGES)
    return _without(left_out, theirs) == _without(left_out, ours)


def _without(left_out: set[str], settings: JsonObject) -> JsonObject:
    train = {key: value for key, value in settings["train"].items() if key not in left_out}
    return {**settings, "train": train}


def _end(pace: _LRKey, relative: _SiblingRun) -> int:
    """After how many steps at most a state of the other training is one of this one."""
    return pace.steps if relative.parting is None else min(pace.steps, relative.parting)


def _first_step(folder: Path) -> int:
    """After how many steps the oldest state was saved; 0 without one."""
    return min((step_of(path) for path in state_files(folder)), default=0)


def _changed_code(other: Path, code: ModuleDigests) -> str:
    return ", ".join(changed_modules(read_note(other / CODE), code))
