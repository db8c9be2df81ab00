"""What every section of params.yaml shares: its base, validation in one sentence, canonical form."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from diffusion.system import limits
from diffusion.system.errors import UsageError

Kind = TypeVar("Kind", bound=BaseModel)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each value may stand once (got {list(values)})")
    return values


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number is wanted (got {str(value).lower()})")
    return value


def _possible(path: Path) -> Path:
    name = os.fsencode(path)
    longest = max(map(len, name.split(b"/")))
    if b"\0" in name or len(name) > limits.MAX_PATH or longest > limits.MAX_NAME:
        raise ValueError(f"no file can be called that (got {brief(path, str)})")
    return path


NotBool = BeforeValidator(_number)
PositiveInt = Annotated[int, Field(gt=0, le=limits.MAX_COUNT), NotBool]
BatchSize = Annotated[int, Field(gt=0, le=limits.MAX_BATCH), NotBool]
Side = Annotated[int, Field(gt=0, le=limits.MAX_SIDE), NotBool]
Steps = Annotated[int, Field(gt=0, le=limits.MAX_STEPS), NotBool]
Seed = Annotated[int, Field(ge=0, le=limits.MAX_SEED), NotBool]
Probability = Annotated[float, Field(ge=0, lt=1), NotBool]
ShortText = Annotated[str, Field(max_length=limits.MAX_NAME)]
FilePath = Annotated[Path, AfterValidator(_possible)]
Unique = AfterValidator(_distinct)
UNKNOWN_KEY = "unknown_key"  # the type of an error that says by itself what is allowed
SAYS_ALL = ("value_error", "missing", "json_invalid", UNKNOWN_KEY)
MAX_PROBLEMS = 5  # told of one file at once
MAX_TOLD = 700  # characters of all of them; of one, half
BRIEF = 120  # characters of what somebody gave, told back


class Section(BaseModel):
    """A frozen section of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """The options of what has none."""


def validate(kind: type[Kind], values: Any, origin: str) -> Kind:
    """Plain values as that class; UsageError names `origin`, the field and what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, origin, kind)) from None


def explain(error: ValidationError, origin: str, kind: Any) -> str:
    """One sentence for the user: where, what is wrong, what is allowed. `kind` is what was validated."""
    found = error.errors(include_url=False)
    problems = [_problem(item, kind) for item in found[:MAX_PROBLEMS]]
    while len(problems) > 1 and sum(map(len, problems)) > MAX_TOLD:
        problems.pop()
    if len(found) > len(problems):
        problems.append(f"and {len(found) - len(problems)} more")
    return f"{origin}: " + "; ".join(problems)


def _problem(item: ErrorDetails, kind: Any) -> str:
    field = brief(".".join(str(part) for part in item["loc"]), str)
    if item["type"] == "extra_forbidden":
        return f"{field}: unknown key{_allowed_keys(kind, item['loc'])}"
    message = brief(item["msg"].removeprefix("Value error, "), str, MAX_TOLD // 2)
    given = "" if item["type"] in SAYS_ALL else f" (got {brief(item['input'])})"
    return f"{field + ': ' if field else ''}{message}{given}"


def brief(value: Any, written: Callable[[Any], str] = repr, most: int = BRIEF) -> str:
    """A value that somebody gave, in one printable line and at most `most` characters, whatever it is."""
    try:
        text = " ".join(written(value).split())
    except (ValueError, RecursionError):  # a number of more digits than Python writes, nesting without end
        text = f"what is no sensible {type(value).__name__}"
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return text if len(text) <= most else f"{text[:most]}..."


def _allowed_keys(kind: Any, location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        fields = getattr(kind, "model_fields", {})
        if str(part) not in fields:  # below a list, a mapping or a choice of classes
            return ""
        annotation: Any = fields[str(part)].annotation
        kind = next(
            (one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields")), None
        )
    if not hasattr(kind, "model_fields"):
        return ""
    return f", allowed are {', '.join(kind.model_fields)}" if kind.model_fields else ", there are none"


def canonical_json(values: Any) -> str:
    """JSON in one form only: sorted keys, no blanks. Pydantic models are dumped first."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(values: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON: equal exactly when the values are."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]
