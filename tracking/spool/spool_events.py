"""The entries of a spool: what a line of `events.jsonl` may say."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from diffusion.system.renamed import DocumentKind, translate_names

Event = dict[str, Any]


def _below(path: str) -> str:
    """A place below the folder: what is elsewhere is nothing that this training logged."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in path:
        raise ValueError("it lies outside of the training's folder")
    return path


_Whole = Annotated[int, Field(ge=0, le=2**53)]
_Path = Annotated[str, Field(max_length=4096), AfterValidator(_below)]
_Scores = dict[str, float]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Start(_Entry):
    kind: Literal["start"]
    time: _Whole
    key: Annotated[str, Field(min_length=1)]
    name: str
    experiment: str


class _Texts(_Entry):
    kind: Literal["params", "tags"]
    values: dict[str, str]


class _Dataset(_Entry):
    kind: Literal["dataset"]
    name: str
    digest: str
    classes: list[str]


class _Metrics(_Entry):
    kind: Literal["metrics"]
    time: _Whole
    step: _Whole
    values: _Scores


class _Image(_Entry):
    kind: Literal["image"]
    time: _Whole
    step: _Whole
    key: str
    path: _Path


class _Artifact(_Entry):
    kind: Literal["artifact"]
    path: _Path
    folder: str
    sha256: str


class _Checkpoint(_Metrics):
    kind: Literal["checkpoint"]  # type: ignore[assignment]
    path: _Path


class _Dropped(_Entry):
    kind: Literal["dropped"]
    step: _Whole


class _Status(_Entry):
    kind: Literal["status"]
    time: _Whole
    status: Literal["FINISHED", "FAILED", "KILLED"]


_Any = _Start | _Texts | _Dataset | _Metrics | _Image | _Artifact | _Checkpoint | _Dropped | _Status
_ENTRY: TypeAdapter[_Any] = TypeAdapter(Annotated[_Any, Field(discriminator="kind")])


# Kinds of entries whose values are named by fields that may have been renamed since.
_NAMED: dict[str, DocumentKind] = {
    "params": "params",
    "tags": "tags",
    "metrics": "metrics",
    "checkpoint": "metrics",
}


def parse_event(line: bytes) -> Event | None:
    """Parse the entry in a line, with today's names; None if it is no entry."""
    try:
        event = _ENTRY.validate_json(line).model_dump()
    except ValidationError:
        return None
    if kind := _NAMED.get(event["kind"]):
        event["values"] = translate_names(kind, event["values"])
    return event
