"""Types of the values of sampling options, with their bounds and text forms. This module loads no torch."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import from_json

from diffusion.model.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SigmaRel
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.limits import MAX_ETA, MAX_GUIDANCE, MAX_NOISE_LEVEL, MAX_STEPS
from diffusion.system.references import check_name
from diffusion.system.section import NotBool

SamplerName = Annotated[str, AfterValidator(partial(check_name, registry=SAMPLERS))]
SpacingName = Annotated[str, AfterValidator(partial(check_name, registry=SPACINGS))]
GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE), NotBool]
Eta = Annotated[float, Field(ge=0, le=MAX_ETA), NotBool]
Time = Annotated[int, Field(ge=0, lt=MAX_STEPS), NotBool]
NoiseLevel = Annotated[float, Field(ge=0, le=MAX_NOISE_LEVEL), NotBool]
TRAINED_EMA = "decay"  # the model file of a training, averaged by `train.ema_decay`


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


Interval = Annotated[
    tuple[NoiseLevel, NoiseLevel], BeforeValidator(_parse_interval), AfterValidator(_check_order)
]
"""(low, high] of noise levels σ/α (Kynkäänniemi et al. 2024, 2404.07724, eq. 6).

σ/α is the paper's σ, since its images are not scaled down. So an interval does not depend on the schedule.
"""


def interval_text(ends: tuple[float, float]) -> str:
    """Return an interval as cards and command lines write it, such as 0.2:5."""
    return ":".join(map(format_value, ends))


def _parse_average(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Validate a width or `decay`, with one message for both."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            f"a width from {MIN_SIGMA_REL} to {MAX_SIGMA_REL} is wanted, or {TRAINED_EMA}"
        ) from None


Average = Annotated[SigmaRel | Literal["decay"], WrapValidator(_parse_average)]


def split_list(values: Any) -> Any:
    """Split `0,10,99`, the form of a list on a command line or in a flat card."""
    return [part.strip() for part in values.split(",")] if isinstance(values, str) else values


Timesteps = Annotated[tuple[Time, ...], Field(max_length=MAX_STEPS), BeforeValidator(split_list)]


def _parse_mapping(values: Any) -> Any:
    """Parse a mapping from JSON, its form in a flat card."""
    return from_json(values) if isinstance(values, str) else values


Options = Annotated[dict[str, Any], BeforeValidator(_parse_mapping)]
