"""Bases of all sections of params.yaml: validation with one-sentence errors, canonical form, digests."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from diffusion.system import limits
from diffusion.system.errors import UsageError
from diffusion.system.registry import WithOptions, is_entry, load_reference, nearest

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
SigmaRel = Annotated[float, Field(ge=limits.MIN_SIGMA_REL, le=limits.MAX_SIGMA_REL), NotBool]
ShortText = Annotated[str, Field(max_length=limits.MAX_NAME)]
FilePath = Annotated[Path, AfterValidator(_check_path)]
Unique = AfterValidator(_check_unique)
MESSAGES = {  # by the beginning of pydantic's error types
    "missing": "it is missing",
    "string_type": "it must be text",
    "int_": "it must be a whole number",
    "float_": "it must be a number",
    "bool_": "it must be true or false",
    "tuple_": "it must be a list",
    "list_": "it must be a list",
}
UNION_PART = re.compile(r"[\[(]|^(int|float|str|bool|none)$")
UNKNOWN_KEY = "unknown_key"  # the type of an error; its message lists the allowed keys
COMPLETE_MESSAGES = ("value_error", "missing", "json_invalid", UNKNOWN_KEY)
MAX_PROBLEMS = 5  # reported per file
MAX_MESSAGE = 700  # characters of all reported problems; of one, half
BRIEF = 120  # characters of a quoted value


class Section(BaseModel):
    """A frozen section of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """Options of an entry that has none."""


class RegistrySection(Section):
    """Common fields of all entries of a registry; values become an instance of the selected entry's class.

    `CHOSEN_BY` is the field with the entry's name. `OF_ENTRY` is the entry's attribute with the class, a
    subclass of this one as a torch-free "module:name". `ALSO` are keys that replace fields, each with the
    entries that it names. An option of other entries is refused with their names.
    """

    CHOSEN_BY: ClassVar[str]
    ENTRIES: ClassVar[Mapping[str, Any]]
    OF_ENTRY: ClassVar[str] = "config"
    ALSO: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def __new__(cls, /, **values: Any) -> Self:
        """Create an instance of the entry's class, which Python then initialises."""
        name = cls._named(values)
        wanted = cls if name is None else cls._class_of(name)
        return super().__new__(wanted if issubclass(wanted, cls) else cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_entry(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        name = cls._named(values)
        if name is None:  # no other field is known without an entry
            named = isinstance(values, dict) and cls.CHOSEN_BY in values
            return handler({cls.CHOSEN_BY: values[cls.CHOSEN_BY]} if named else values)
        wanted = cls._class_of(name)
        problems = [
            InitErrorDetails(
                type=PydanticCustomError(kind, "{why}", {"why": why}), loc=(key,), input=values.get(key)
            )
            for key, kind, why in cls._problems(values, name, wanted)
        ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return handler(values) if issubclass(cls, wanted) else cast(Self, wanted.model_validate(values))

    @classmethod
    def _problems(
        cls, values: dict[str, Any], name: str, wanted: "type[RegistrySection]"
    ) -> Iterator[tuple[str, Any, str]]:
        """Yield the refused keys, each with the type of the error and its message."""
        if not issubclass(cls, wanted) and not issubclass(wanted, cls):  # a section for one kind of entry
            kinds = ((other, cls._class_of(other)) for other in cls.ENTRIES)
            fitting = [other for other, kind in kinds if issubclass(cls, kind) or issubclass(kind, cls)]
            yield cls.CHOSEN_BY, "value_error", f"it must be {' or '.join(fitting)} here (got {name})"
            return
        for key in values:
            if key not in wanted._keys():
                others = [other for other in cls.ENTRIES if key in cls._class_of(other)._keys()]
                belongs = f"{name} has no such option; it belongs to {' and '.join(others)}"
                yield key, UNKNOWN_KEY, belongs if others else unknown_key(key, wanted._keys())

    @classmethod
    def _named(cls, values: Any) -> str | None:
        """Return the selected entry; None if the values name none."""
        if not isinstance(values, dict):
            return None
        name = values.get(cls.CHOSEN_BY, cls.model_fields[cls.CHOSEN_BY].default)
        return name if is_entry(name, cls.ENTRIES) else None

    @classmethod
    def _class_of(cls, name: str) -> "type[RegistrySection]":
        kind: type[RegistrySection] = load_reference(getattr(cls.ENTRIES[name], cls.OF_ENTRY))
        return kind

    @classmethod
    def _keys(cls) -> list[str]:
        return [*cls.model_fields, *sorted(cls.ALSO)]


def own_options(entry: WithOptions, values: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the options of an entry that differ from their default; ValueError, with `what`, if invalid."""
    try:
        return dict(entry.parse(values).model_dump(mode="json", exclude_defaults=True))
    except ValidationError as error:
        raise ValueError(explain(error, what, load_reference(entry.options))) from None


def validate(kind: type[Kind], values: Any, origin: str) -> Kind:
    """Validate plain values as that class; UsageError names `origin`, the field and what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, origin, kind)) from None


def explain(error: ValidationError | list[ErrorDetails], origin: str, kind: Any) -> str:
    """Return one sentence: where, what is wrong, what is allowed. `kind` is the validated class."""
    fields: dict[str, list[ErrorDetails]] = {}
    details = error.errors(include_url=False) if isinstance(error, ValidationError) else error
    for item in details:
        if not _follows(item, details):
            fields.setdefault(_field(item["loc"]), []).append(item)
    problems = [_problem(field, items, kind) for field, items in [*fields.items()][:MAX_PROBLEMS]]
    while len(problems) > 1 and sum(map(len, problems)) > MAX_MESSAGE:
        problems.pop()
    if len(fields) > len(problems):
        problems.append(f"and {len(fields) - len(problems)} more")
    return f"{origin}: " + "; ".join(problems)


def _follows(item: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Return whether a list is too short only because pydantic does not count its invalid elements."""
    place = item["loc"]
    inner = (one["loc"] for one in details if len(one["loc"]) > len(place))
    return item["type"] == "too_short" and any(other[: len(place)] == place for other in inner)


def _field(location: tuple[int | str, ...]) -> str:
    """Return the path of a field, without the types of a union that pydantic appends."""
    parts = [str(part) for part in location]
    end = next((place for place, part in enumerate(parts) if UNION_PART.search(part)), len(parts))
    return brief(".".join(parts[:end]), str)


def _problem(field: str, items: Sequence[ErrorDetails], kind: Any) -> str:
    """Return what is wrong with a field; the items are alternatives if it may have several types."""
    item, where = items[0], f"{field}: " if field else ""
    if item["type"] == "extra_forbidden":
        allowed, key = _allowed_keys(kind, item["loc"]), str(item["loc"][-1])
        return where + ("unknown key" if allowed is None else unknown_key(key, allowed))
    message = brief(", or ".join(_message(one, kind) for one in items), str, MAX_MESSAGE // 2)
    if item["type"] in COMPLETE_MESSAGES:
        return where + message
    return f"{where}{message} (got {_as_yaml(item['input'])}{''.join(map(_value_hint, items))})"


def _message(item: ErrorDetails, kind: Any) -> str:
    """Return what is wrong, in the words of YAML instead of Python's."""
    if item["type"] == "literal_error":
        return f"allowed are {', '.join(_choices(item))}"
    if item["type"].startswith(("model_", "dict_")):
        keys = _allowed_keys(kind, (*item["loc"], ""))
        return f"it must be a section with the keys {', '.join(keys)}" if keys else "it must be a section"
    if item["type"] in ("too_short", "too_long"):
        bounds = item.get("ctx", {})
        limit = bounds.get("min_length", bounds.get("max_length"))
        return f"it must have at {'least' if item['type'] == 'too_short' else 'most'} {limit} value(s)"
    text = re.sub("^(Input|String) should", "it must", item["msg"].removeprefix("Value error, "))
    return next((ours for kind, ours in MESSAGES.items() if item["type"].startswith(kind)), text)


def _choices(item: ErrorDetails) -> list[str]:
    """Return the values of a `Literal`, from a text such as "'a', 'b' or 'c'" or "1 or 3"."""
    return [one.strip("'") for one in re.split(", | or ", item.get("ctx", {}).get("expected", ""))]


def _value_hint(item: ErrorDetails) -> str:
    is_choice = item["type"] == "literal_error" and isinstance(item["input"], str)
    near = nearest(item["input"], _choices(item)) if is_choice else None
    return f"; did you mean {near}?" if near else ""


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool | list | tuple | dict):
        return brief(value, lambda value: json.dumps(value, ensure_ascii=False, default=str))
    return brief(value)


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """Return why a key is refused, and what to write instead."""
    near = nearest(key, allowed)
    hint = f" (did you mean {near}?)" if near else ""
    return (
        f"unknown key{hint}, allowed are {', '.join(allowed)}" if allowed else "unknown key, there are none"
    )


def brief(value: Any, to_text: Callable[[Any], str] = repr, max_length: int = BRIEF) -> str:
    """Return any value as one printable line of at most `max_length` characters."""
    try:
        text = " ".join(to_text(value).split())
    except (ValueError, RecursionError):  # a number with too many digits, or circular nesting
        text = f"an unprintable {type(value).__name__}"
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return text if len(text) <= max_length else f"{text[:max_length]}..."


def _allowed_keys(kind: Any, location: tuple[int | str, ...]) -> list[str] | None:
    """Return the keys of the section at a location; None below a list, a mapping or a union of classes."""
    for part in location[:-1]:
        fields = getattr(kind, "model_fields", {})
        if str(part) not in fields:
            return None
        annotation: Any = fields[str(part)].annotation
        kind = next(
            (one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields")), None
        )
    return list(kind.model_fields) if hasattr(kind, "model_fields") else None


def canonical_json(values: Any) -> str:
    """Return JSON in canonical form: sorted keys, no blanks. Pydantic models are dumped first."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(values: Any) -> str:
    """Return 16 hex digits of the SHA-256 of the canonical JSON: equal exactly for equal values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]
