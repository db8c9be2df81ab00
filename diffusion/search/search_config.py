"""The section `search` of params.yaml, and the points of its search."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from diffusion.system.errors import UsageError
from diffusion.system.params import with_fields
from diffusion.system.section import NotBool, Section, Seed, ShortText, brief, canonical_json

MAX_FIELDS, MAX_VALUES, MAX_TRIALS = 20, 100, 10_000
MAX_NUMBER = 1e15
MAX_POINTS = 4096  # of a grid; each is validated, which takes a few seconds in all
SECTIONS = ("model", "process", "train")  # they decide a training; all other values are shared
OF_DATA = ("data.flip",)  # needs no other preparation

Number = Annotated[int | float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER), NotBool]


class Range(Section):
    """Numbers from `low` to `high`, included; integers if both ends are; `log`: log-uniform."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0 (got {self.low})")
        return self


Point = Mapping[str, Any]
"""A value for each searched field, by its dotted name."""

Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=MAX_VALUES)]


class SearchConfig(Section):
    """The space and the method of `diffctl search`.

    `fields` maps a field's dotted name to a list of values or a range. `method` is grid (every combination
    once), random, or tpe (Optuna's tree-structured Parzen estimator, Bergstra et al. 2011). `trials` is their
    number; None runs the whole grid. With `prune`, a training ends early if its validation loss is above the
    median of earlier trials at the same step. A proposal is a function of `seed`, its number and earlier
    trials.
    """

    fields: Annotated[dict[ShortText, Range | Values], Field(min_length=1, max_length=MAX_FIELDS)]
    method: Literal["grid", "random", "tpe"] = "random"
    trials: Annotated[int, Field(gt=0, le=MAX_TRIALS), NotBool] | None = None
    seed: Seed = 0
    prune: bool = False

    @model_validator(mode="after")
    def _fields_decide_a_training(self) -> Self:
        for name, values in self.fields.items():
            if name not in OF_DATA and name.partition(".")[0] not in SECTIONS:
                allowed = ", ".join((*SECTIONS, *OF_DATA))
                raise ValueError(f"fields.{name}: a search varies only what decides a training ({allowed})")
            if parents := [other for other in self.fields if name.startswith(f"{other}.")]:
                raise ValueError(f"fields.{name} is part of fields.{parents[0]}: name one of them")
            if not isinstance(values, Range) and len(set(map(canonical_json, values))) < len(values):
                raise ValueError(f"fields.{name}: values must differ")
        return self

    @model_validator(mode="after")
    def _method_has_an_end(self) -> Self:
        ranges = [name for name, values in self.fields.items() if isinstance(values, Range)]
        if self.method == "grid" and ranges:
            raise ValueError(f"fields.{ranges[0]}: a grid needs a list of values")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"trials: {self.method} needs a number of trials")
        return self


def grid(section: SearchConfig) -> list[Point]:
    """Return all combinations of values and range ends, the last field fastest; UsageError if too many."""
    axes = {
        name: (values.low, values.high) if isinstance(values, Range) else values
        for name, values in section.fields.items()
    }
    if (count := math.prod(map(len, axes.values()))) > MAX_POINTS:
        raise UsageError(f"search.fields has {count:,} combinations, over {MAX_POINTS:,}: name fewer")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def count_trials(section: SearchConfig) -> int:
    """Return the number of trials of the search."""
    if section.method == "grid":
        return min(len(grid(section)), section.trials or MAX_POINTS)
    assert section.trials is not None, "the section is validated"
    return section.trials


def describe_point(point: Point) -> str:
    """Return the point in one line."""
    return ", ".join(f"{name} {brief(value, str, 40)}" for name, value in point.items())


def refuse_invalid(
    values: dict[str, Any], section: SearchConfig, validate: Callable[[dict[str, Any], str], object]
) -> None:
    """Raise UsageError for the first point, or end of a range, that `validate`(values, origin) refuses."""
    for point in grid(section):
        validate(with_fields(values, point, "search.fields."), f"search with {describe_point(point)}")
