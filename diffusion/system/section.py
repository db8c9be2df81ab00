"""Base of all sections of params.yaml: validation with one-sentence errors, canonical form, digests."""

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


def _check_unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each value may occur once (got {list(values)})")
    return values


def _check_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"it must be a number (got {str(value).lower()})")
    return value


def _check_path(path: Path) -> Path:
    name = os.fsencode(path)
    longest = max(map(len, name.split(b"/")))
    if b"\0" in name or len(name) > limits.MAX_PATH or longest > limits.MAX_NAME:
        raise ValueError(f"it is not a possible file name (got {brief(path, str)})")
    return path


NotBool = BeforeValidator(_check_number)
PositiveInt = Annotated[int, Field(gt=0, le=limits.MAX_COUNT), NotBool]
BatchSize = Annotated[int, Field(gt=0, le=limits.MAX_BATCH), NotBool]
Side = Annotated[int, Field(gt=0, le=limits.MAX_SIDE), NotBool]
Steps = Annotated[int, Field(gt=0, le=limits.MAX_STEPS), NotBool]
Seed = Annotated[int, Field(ge=0, le=limits.MAX_SEED), NotBool]
Probability = Annotated[float, Field(ge=0, lt=1), NotBool]
ShortText = Annotated[str, Field(max_length=limits.MAX_NAME)]
FilePath = Annotated[Path, AfterValidator(_check_path)]
Unique = AfterValidator(_check_unique)
UNKNOWN_KEY = "unknown_key"  # the type of an error whose message lists what is allowed
COMPLETE_MESSAGES = ("value_error", "missing", "json_invalid", UNKNOWN_KEY)
MAX_PROBLEMS = 5  # reported per file
MAX_MESSAGE = 700  # characters of all reported problems; of one, half
BRIEF = 120  # characters of a quoted value


class Section(BaseModel):
    """A frozen section of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """Options of an entry that has none."""


def validate(kind: type[Kind], values: Any, origin: str) -> Kind:
    """Validate plain values as that class; UsageError names `origin`, the field and what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, origin, kind)) from None


def explain(error: ValidationError, origin: str, kind: Any) -> str:
    """Return one sentence: where, what is wrong, what is allowed. `kind` is the validated class."""
    found = error.errors(include_url=False)
    problems = [_problem(item, kind) for item in found[:MAX_PROBLEMS]]
    while len(problems) > 1 and sum(map(len, problems)) > MAX_MESSAGE:
        problems.pop()
    if len(found) > len(problems):
        problems.append(f"and {len(found) - len(problems)} more")
    return f"{origin}: " + "; ".join(problems)


def _problem(item: ErrorDetails, kind: Any) -> str:
    field = brief(".".join(str(part) for part in item["loc"]), str)
    if item["type"] == "extra_forbidden":
        return f"{field}: unknown key{_allowed_keys(kind, item['loc'])}"
    message = brief(item["msg"].removeprefix("Value error, "), str, MAX_MESSAGE // 2)
    given = "" if item["type"] in COMPLETE_MESSAGES else f" (got {brief(item['input'])})"
    return f"{field + ': ' if field else ''}{message}{given}"


def brief(value: Any, to_text: Callable[[Any], str] = repr, max_length: int = BRIEF) -> str:
    """Return any value as one printable line of at most `most` characters."""
    try:
        text = " ".join(to_text(value).split())
    except (ValueError, RecursionError):  # a number with too many digits, or circular nesting
        text = f"an unprintable {type(value).__name__}"
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return text if len(text) <= max_length else f"{text[:max_length]}..."


def _allowed_keys(kind: Any, location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        fields = getattr(kind, "model_fields", {})
        if str(part) not in fields:  # below a list, a mapping or a union of classes
            return ""
        annotation: Any = fields[str(part)].annotation
        kind = next(
            (one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields")), None
        )
    if not hasattr(kind, "model_fields"):
        return ""
    return f", allowed are {', '.join(kind.model_fields)}" if kind.model_fields else ", there are none"


def canonical_json(values: Any) -> str:
    """Return JSON in canonical form: sorted keys, no blanks. Pydantic models are dumped first."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(values: Any) -> str:
    """Return 16 hex digits of the SHA-256 of the canonical JSON: equal exactly for equal values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]
