"""The points of a search, their values in params.yaml, and the check that all are valid."""

import itertools
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from diffusion.search.search_config import Range, SearchConfig
from diffusion.system.errors import UsageError
from diffusion.system.section import brief

MAX_POINTS = 4096  # of a grid, each of which is validated: a few seconds

Point = dict[str, Any]
"""A value for each searched field, by its dotted name."""


def grid(section: SearchConfig) -> list[Point]:
    """Return every combination of listed values and of range ends; the last field varies fastest.

    UsageError if there are too many.
    """
    axes = {
        name: (values.low, values.high) if isinstance(values, Range) else values
        for name, values in section.fields.items()
    }
    if (count := math.prod(map(len, axes.values()))) > MAX_POINTS:
        raise UsageError(
            f"search.fields: {count:,} combinations of values and range ends, at most {MAX_POINTS:,}: "
            "name fewer"
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def count_trials(section: SearchConfig) -> int:
    """Return the number of trials of the search."""
    if section.method == "grid":
        return min(len(grid(section)), section.trials or MAX_POINTS)
    assert section.trials is not None, "the section is validated"
    return section.trials


def applied(values: dict[str, Any], point: Point) -> dict[str, Any]:
    """Return the plain values of params.yaml with those of the point; UsageError if a field cannot be set."""
    changed = deepcopy(values)
    for name, value in point.items():
        *parents, last = name.split(".")
        section = changed
        for key in parents:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise UsageError(f"search.fields.{name}: params.yaml has {brief(section)} at {key}, not keys")
        section[last] = deepcopy(value)
    return changed


def describe_point(point: Point) -> str:
    """Return the point in one line."""
    return ", ".join(f"{name} {brief(value, str, 40)}" for name, value in point.items())


def refuse_invalid(
    values: dict[str, Any], section: SearchConfig, validate: Callable[[dict[str, Any], str], object]
) -> None:
    """Raise UsageError for the first point that is no valid configuration; of ranges the ends are tried.

    `validate` takes the values of params.yaml and their origin, and raises the error.
    """
    for point in grid(section):
        validate(applied(values, point), f"search with {describe_point(point)}")


def sorted_fields(section: SearchConfig) -> list[tuple[str, Range | tuple[Any, ...]]]:
    """Return the fields and their values, sorted by name."""
    return sorted(section.fields.items())
