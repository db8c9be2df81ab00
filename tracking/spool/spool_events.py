"""The events of a spool: the format of a line of `events.jsonl`, and reading them.

Each line is a JSON object with the original step and time (milliseconds since 1970). It ends in `"crc"`, a
CRC-32 of everything before it; a line with another one is damaged.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from diffusion.system.renamed import DocumentKind, translate_names

EVENTS = "events.jsonl"
CHECKSUM = b',"crc":"%08x"}\n'

Event = dict[str, Any]


def _below(path: str) -> str:
    """Check that a path is below the training's folder."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in path:
        raise ValueError("it is outside of the training's folder")
    return path


_Count = Annotated[int, Field(ge=0, le=2**53)]
_Path = Annotated[str, Field(max_length=4096), AfterValidator(_below)]


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Timed(_Base):
    time: _Count


class _Start(_Timed):
    """The first event after each opening of the spool."""

    kind: Literal["start"]
    key: Annotated[str, Field(min_length=1)]
    name: str
    experiment: str


class _Texts(_Base):
    kind: Literal["params", "tags"]
    values: dict[str, str]


class _Dataset(_Base):
    kind: Literal["dataset"]
    name: str
    digest: str
    classes: list[str]


class _Metrics(_Timed):
    kind: Literal["metrics"]
    step: _Count
    values: dict[str, float]


class _Checkpoint(_Metrics):
    kind: Literal["checkpoint"]  # type: ignore[assignment]
    path: _Path


class _Image(_Timed):
    kind: Literal["image"]
    step: _Count
    key: str
    path: _Path


class _Artifact(_Base):
    kind: Literal["artifact"]
    path: _Path
    folder: str
    sha256: str


class _Dropped(_Base):
    kind: Literal["dropped"]
    step: _Count


class _Status(_Timed):
    kind: Literal["status"]
    status: Literal["FINISHED", "FAILED", "KILLED"]


_Any = _Start | _Texts | _Dataset | _Metrics | _Image | _Artifact | _Checkpoint | _Dropped | _Status
_EVENT: TypeAdapter[_Any] = TypeAdapter(Annotated[_Any, Field(discriminator="kind")])

# Kinds of events with named values, each with the document of the names, which may have changed since.
_NAMED: dict[str, DocumentKind] = {"params": "params", "tags": "tags"}
_NAMED |= {"metrics": "metrics", "checkpoint": "metrics"}


def encode_event(event: Event) -> bytes:
    """Return the event's line with its checksum."""
    content = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return content + CHECKSUM % zlib.crc32(content)


def decode_event(line: bytes) -> Event | None:
    """Return the event of a line, with today's names; None if the line is damaged or not an event."""
    content, _, _ = line.rpartition(CHECKSUM[:8])
    if line != content + CHECKSUM % zlib.crc32(content):
        return None
    try:
        event = _EVENT.validate_json(content + b"}").model_dump()
    except ValidationError:
        return None
    if kind := _NAMED.get(event["kind"]):
        event["values"] = translate_names(kind, event["values"])
    return event


def read_events(folder: Path) -> Iterator[Event]:
    """Yield every undamaged event in order; none if there is no spool."""
    return (event for event, _ in read_lines(folder) if event is not None)


def read_lines(folder: Path, offset: int = 0) -> Iterator[tuple[Event | None, int]]:
    """Yield each complete line from byte `offset` on with the offset after it; None for a damaged line."""
    try:
        file = open(folder / EVENTS, "rb")  # noqa: SIM115 (closed below; a missing file is no spool)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield decode_event(line), offset
