"""The events of a spool: a class for each kind, and their lines with a checksum."""

import json
import math
import zlib
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

CHECKSUM = b',"crc":"%08x"}\n'


def _below(path: str) -> str:
    """Check that a path is below the training's folder."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in path:
        raise ValueError("it is outside of the training's folder")
    return path


Count = Annotated[int, Field(ge=0, le=2**53)]
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
SpoolPath = Annotated[str, Field(max_length=4096), AfterValidator(_below)]


class Event(BaseModel, extra="forbid"):
    """A line of the spool; each kind is a subclass."""

    kind: str


class Start(Event):
    """A start or resume of the training."""

    kind: Literal["start"] = "start"
    time: Count
    key: Annotated[str, Field(min_length=1)]
    name: str
    experiment: str


class Params(Event):
    """Values of the configuration."""

    kind: Literal["params"] = "params"
    values: dict[str, str]


class Tags(Event):
    """Tags of the run."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]


class Dataset(Event):
    """The training's data set."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    classes: list[str]


class Points(Event):
    """Metrics after a step."""

    kind: Literal["metrics"] = "metrics"
    time: Count
    step: Count
    values: dict[str, float]


class Checkpoint(Event):
    """Weights that are kept, with their scores."""

    kind: Literal["checkpoint"] = "checkpoint"
    time: Count
    step: Count
    values: dict[str, float]
    path: SpoolPath


class Picture(Event):
    """A picture after a step, of the series `key`."""

    kind: Literal["image"] = "image"
    time: Count
    step: Count
    key: str
    path: SpoolPath


class Artifact(Event):
    """A copy of a file, for the run's artifact folder."""

    kind: Literal["artifact"] = "artifact"
    path: SpoolPath
    folder: str
    sha256: str


class Dropped(Event):
    """The checkpoint of a step was deleted."""

    kind: Literal["dropped"] = "dropped"
    step: Count


class End(Event):
    """The end of the training."""

    kind: Literal["status"] = "status"
    time: Count
    status: EndStatus


AnyEvent = Start | Params | Tags | Dataset | Points | Checkpoint | Picture | Artifact | Dropped | End
_EVENTS: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="kind")])


def encode_event(event: Event) -> bytes:
    """Return the event's line with its checksum."""
    values = event.model_dump()
    if isinstance(event, Points | Checkpoint):
        values["values"] = _json_floats(event.values)
    content = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return content + CHECKSUM % zlib.crc32(content)


def decode_event(line: bytes) -> AnyEvent | None:
    """Return the event of a line; None if the line is damaged or not an event."""
    content, _, _ = line.rpartition(CHECKSUM[:8])
    if line != content + CHECKSUM % zlib.crc32(content):
        return None
    try:
        return _EVENTS.validate_python(json.loads(content + b"}"))
    except (ValueError, RecursionError):
        return None


def _json_floats(values: dict[str, float]) -> dict[str, float | str]:
    """Return floats for JSON: NaN and infinity become texts, which float() reads."""
    return {key: float(v) if math.isfinite(v) else str(float(v)) for key, v in values.items()}
