"""The declaration of a sampling option: its type, and what the interfaces need to know about it.

A field of `diffusion.protocol.settings.SampleSettings` carries an `Option` in its annotation. From it follow
the sections `sample` and `sweep` of params.yaml, command-line options, HTTP fields, controls of the
playground, cards, cell names and report columns. This module loads no torch.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from diffusion.system.limits import MAX_NOISE_LEVEL, MAX_STEPS
from diffusion.system.section import NotBool


@dataclass(frozen=True)
class NoEffect:
    """A condition under which an option has no effect: another option has one of these values.

    `why` completes the sentence "… has no effect", with the other `{option}` and its `{value}`. Without
    `values` the condition is any value but None.
    """

    option: str
    why: str
    values: Callable[[], Iterable[Any]] | None = None

    def holds(self, value: Any) -> bool:
        """Return whether the condition holds for this value of the other option."""
        return value is not None if self.values is None else value in tuple(self.values())


@dataclass(frozen=True)
class Option:
    """The declaration of a sampling option.

    `metavar` is the form of its value on a command line. `label` names it in a form or a table. `phrase`
    describes a value in a text ("η = {}"; "name value" without it). An `axis` may be listed in the section
    `sweep`; a required one must be. `no_effect` has the conditions under which it changes no image. `write`
    makes its text form for names, cards and command lines, by default the value itself. `stored` is the
    type of a value in scores.json where that differs. `choices` are the allowed names. Cards state the
    option always, or only where it differs from its default. `http` and `registered` are whether the HTTP
    request and the registered MLflow model accept it. `unset` is a listed value that means the default, which
    a cell's name leaves out. `name` and `declared` are set by `declared_options`.
    """

    help: str
    metavar: str = ""
    label: str = ""
    phrase: str = ""
    axis: Literal["required", "optional"] | None = "optional"
    no_effect: tuple[NoEffect, ...] = ()
    write: Callable[[Any], str] | None = None
    stored: Any = None
    choices: Mapping[str, Any] | tuple[str, ...] = ()
    always_in_card: bool = False
    http: bool = True
    registered: bool = True
    unset: Any = None
    name: str = ""
    declared: FieldInfo = field(default_factory=FieldInfo, compare=False)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the field in the JSON schema of params.yaml."""
        return {**handler(schema), "description": self.help}

    @property
    def annotation(self) -> Any:
        """The annotated type with its bounds and validators."""
        extra = tuple(one for one in self.declared.metadata if not isinstance(one, Option))
        return Annotated[(self.declared.annotation, *extra)] if extra else self.declared.annotation

    @property
    def default(self) -> Any:
        """The default value."""
        return self.declared.get_default(call_default_factory=True)

    @property
    def plain_type(self) -> Any:
        """The type without None, bounds and validators, such as int or tuple[float, float]."""
        return _plain(self.declared.annotation)

    def bound(self, lower: bool) -> float | None:
        """Return the inclusive lower or upper bound of a number, or None."""
        inclusive, exclusive = (Ge, Gt) if lower else (Le, Lt)
        towards = math.inf if lower else -math.inf
        for one in self.declared.metadata:
            if isinstance(one, inclusive | exclusive):
                end: Any = getattr(one, type(one).__name__.lower())
                if isinstance(one, inclusive):
                    return end  # type: ignore[no-any-return]
                return (
                    math.nextafter(end, towards) if self.plain_type is float else end + (1 if lower else -1)
                )
        return None

    def text(self, value: Any) -> Any:
        """Return a value in its text form if the option has one, else the value."""
        return value if value is None or self.write is None else self.write(value)

    def idle_reason(self, value_of: Callable[[str], Any]) -> str | None:
        """Return why it has no effect next to others' values, or None."""
        for condition in self.no_effect:
            value = value_of(condition.option)
            if condition.holds(value):
                return condition.why.format(option=condition.option, value=value)
        return None


def declared_options(section: type[BaseModel]) -> dict[str, Option]:
    """Return the options that a class declares, by name; those of the class itself before inherited ones."""
    own = inspect.get_annotations(section)
    fields = sorted(section.model_fields.items(), key=lambda item: item[0] not in own)
    return {
        name: replace(option, name=name, declared=declared)
        for name, declared in fields
        for option in declared.metadata
        if isinstance(option, Option)
    }


def fields_section(name: str, base: type[BaseModel], fields: Mapping[str, tuple[Any, Any]]) -> Any:
    """Return a class with these fields, name → (type, default), below `base`."""
    return create_model(name, __base__=base, **fields)  # type: ignore[call-overload]


def _plain(annotation: Any) -> Any:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _plain(arguments[0])
    if get_origin(annotation) is Literal:
        return type(arguments[0])
    if get_origin(annotation) is tuple:
        return tuple[tuple(_plain(one) for one in arguments)]  # type: ignore[misc]
    if type(None) in arguments:
        return _plain(next(one for one in arguments if one is not type(None)))
    return annotation


# Types of values that have a text form.


def format_value(value: str | float) -> str:
    """Return a value for a name or a table: as short as reads back to itself, so that no two look alike."""
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _parse_interval(values: Any) -> Any:
    """Parse an interval from its text form `0.2:5`; return anything else unchanged."""
    if not isinstance(values, str):
        return values
    try:
        low, high = map(float, values.split(":"))
    except ValueError:
        raise ValueError(f"an interval is LOW:HIGH, such as 0.2:5 (got {values[:40]!r})") from None
    return low, high


def _check_order(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if low >= high:
        raise ValueError(f"the low end must be below the high one (got {low:g} and {high:g})")
    return ends


IntervalEnd = Annotated[float, Field(ge=0, le=MAX_NOISE_LEVEL), NotBool]
Interval = Annotated[
    tuple[IntervalEnd, IntervalEnd], BeforeValidator(_parse_interval), AfterValidator(_check_order)
]
"""(low, high] of noise levels σ/α (Kynkäänniemi et al. 2024, 2404.07724).

σ/α is the paper's σ, since its images are not scaled down. So an interval does not depend on the schedule.
"""


def interval_text(ends: tuple[float, float]) -> str:
    """Return an interval as cards and command lines write it, such as 0.2:5."""
    return ":".join(map(format_value, ends))


def split_list(values: Any) -> Any:
    """Split `0,10,99`, the form of a list on a command line or in a flat card."""
    return [part.strip() for part in values.split(",")] if isinstance(values, str) else values


Time = Annotated[int, Field(ge=0, lt=MAX_STEPS), NotBool]
Timesteps = Annotated[tuple[Time, ...], Field(max_length=MAX_STEPS), BeforeValidator(split_list)]

# In a flat card a mapping is JSON.
EntryOptions = Annotated[
    dict[str, Any], BeforeValidator(lambda values: from_json(values) if isinstance(values, str) else values)
]
