"""What a training records in its run directory: heartbeat, settings and code. Loads no torch."""

import warnings
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from diffusion.system.checksums import JsonObject, read_checksummed_json
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.section import Section

HEARTBEAT = "run.json"
CONFIG, CODE = "config.json", "code.json"  # what the training's fingerprint was computed from
FACTS = "facts.json"  # of the last session that trained a step
SNAPSHOTS = "ema"  # the folder of EMA snapshots in a run directory

_Timestamp = Annotated[float, Field(ge=0, lt=10**11)]


class Heartbeat(Section):
    """Key, process and step of a training, and the time of the heartbeat in seconds since 1970."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    pid: PositiveInt
    step: Annotated[NonNegativeInt, Field(le=10**12)]
    heartbeat: _Timestamp


class TrainingFacts(Section):
    """What the last session that trained a step records at its end, for the report.

    `ended` is in seconds since 1970; `seconds` is the time since `first_step`. A `commit` with uncommitted
    edits ends with a plus sign.
    """

    ended: _Timestamp
    seconds: Annotated[float, Field(ge=0)]
    first_step: NonNegativeInt
    parameters: PositiveInt
    hardware: str
    commit: str | None


class TrainingIdentity(Section):
    """The content of models/run.json: key and fingerprint of the training that made the model.

    `model_sha256` is the model's identity, None in older files.
    """

    key: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    facts: TrainingFacts | None = None


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """Return the last heartbeat in a run directory, None without one; DiffctlError if it is damaged."""
    try:
        return read_checksummed_json(folder / HEARTBEAT, Heartbeat)
    except FileNotFoundError:
        return None


def read_facts(folder: Path) -> TrainingFacts | None:
    """Return the facts in a run directory, None if they are missing or damaged."""
    try:
        return read_checksummed_json(folder / FACTS, TrainingFacts)
    except (FileNotFoundError, DiffctlError):
        return None


def read_note(path: Path) -> JsonObject:
    """Return a note's values; none if it is missing, or damaged, which is reported."""
    try:
        return read_checksummed_json(path, JsonObject)
    except FileNotFoundError:
        return {}
    except DiffctlError as error:
        warnings.warn(f"{error}: it is ignored", DiffctlWarning, stacklevel=2)
        return {}
