"""What every section of params.yaml shares: its base, validation in one sentence, canonical form."""

import hashlib
import json
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from diffusion.system.errors import UsageError

Kind = TypeVar("Kind", bound=BaseModel)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each value may stand once (got {list(values)})")
    return values


PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Distinct = AfterValidator(_distinct)
UNKNOWN_KEY = "unknown_key"  # the type of an error that says by itself what is allowed
SAYS_ALL = ("value_error", "missing", UNKNOWN_KEY)


class Section(BaseModel):
    """A frozen section of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """The options of what has none."""


def validated(kind: type[Kind], values: Any, origin: str) -> Kind:
    """Plain values as that class; UsageError names `origin`, the field and what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, origin, kind)) from None


def explain(error: ValidationError, origin: str, kind: type[BaseModel]) -> str:
    """One sentence for the user: where, what is wrong, what is allowed. `kind` is what was validated."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"{field}: unknown key{_allowed_keys(kind, item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] in SAYS_ALL else f" (got {item['input']!r})"
            problems.append(f"{field + ': ' if field else ''}{message}{given}")
    return f"{origin}: " + "; ".join(problems)


def _allowed_keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        annotation: Any = kind.model_fields[str(part)].annotation
        kind = next(one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields"))
    return f", allowed are {', '.join(kind.model_fields)}"


def canonical(values: Any) -> str:
    """JSON in one form only: sorted keys, no blanks. Pydantic models are dumped first."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(values: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON: equal exactly when the values are."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:16]
