"""The events of a spool: the format of a line of `events.jsonl`, and reading them.

Each line is a JSON object with the original step and time (milliseconds since 1970). It ends in `"crc"`, a
CRC-32 of everything before it; a line with another one is damaged.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

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
_Texts = {"values": dict[str, str]}
_Point = {"time": _Count, "step": _Count}
_Metrics = {**_Point, "values": dict[str, float]}

_FIELDS: dict[str, dict[str, Any]] = {  # of each kind of event
    "start": {"time": _Count, "key": Annotated[str, Field(min_length=1)], "name": str, "experiment": str},
    "params": _Texts,
    "tags": _Texts,
    "dataset": {"name": str, "digest": str, "classes": list[str]},
    "metrics": _Metrics,
    "checkpoint": {**_Metrics, "path": _Path},
    "image": {**_Point, "key": str, "path": _Path},
    "artifact": {"path": _Path, "folder": str, "sha256": str},
    "dropped": {"step": _Count},
    "status": {"time": _Count, "status": Literal["FINISHED", "FAILED", "KILLED"]},
}


class _Event(BaseModel, extra="forbid"):
    kind: str


_KINDS: dict[str, type[_Event]] = {
    kind: create_model(kind, __base__=_Event, **{name: (type_, ...) for name, type_ in fields.items()})  # type: ignore[call-overload]
    for kind, fields in _FIELDS.items()
}


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
        values = json.loads(content + b"}")
        event = _KINDS[values["kind"]].model_validate(values).model_dump()
    except (ValueError, KeyError, TypeError, RecursionError):
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
