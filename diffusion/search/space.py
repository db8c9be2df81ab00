"""The points of a search: values by field, what params.yaml says with them, and whether all are possible."""

import itertools
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from diffusion.search.config import Range, SearchConfig
from diffusion.system.errors import UsageError
from diffusion.system.section import brief

MOST_CHECKED = 4096  # points, each of which is read as params.yaml would be: a few seconds

Point = dict[str, Any]
"""A value for each field that is searched over, by its dotted name."""


def grid(section: SearchConfig) -> list[Point]:
    """Every combination of the listed values, the last field varying fastest; of ranges both ends.

    UsageError for more than can be looked at.
    """
    axes = {
        name: (values.low, values.high) if isinstance(values, Range) else values
        for name, values in section.fields.items()
    }
    if (count := math.prod(map(len, axes.values()))) > MOST_CHECKED:
        raise UsageError(
            f"search.fields: {count:,} combinations of values and ends of ranges are more than "
            f"{MOST_CHECKED:,}: name fewer"
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def count_trials(section: SearchConfig) -> int:
    """How many trials the search has."""
    if section.method == "grid":
        return min(len(grid(section)), section.trials or MOST_CHECKED)
    assert section.trials is not None, "the section says so"
    return section.trials


def applied(values: dict[str, Any], point: Point) -> dict[str, Any]:
    """The plain values of params.yaml with those of the point; UsageError where a field has no place."""
    changed = deepcopy(values)
    for name, value in point.items():
        *above, last = name.split(".")
        place = changed
        for key in above:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
            if not isinstance(place, dict):
                raise UsageError(f"search.fields.{name}: params.yaml has {brief(place)} at {key}, not keys")
        place[last] = deepcopy(value)
    return changed


def spoken(point: Point) -> str:
    """The point in one line."""
    return ", ".join(f"{name} {brief(value, str, 40)}" for name, value in point.items())


def refuse_impossible(
    values: dict[str, Any], section: SearchConfig, possible: Callable[[dict[str, Any], str], object]
) -> None:
    """UsageError by the first point that makes no possible configuration: of ranges the ends are tried.

    `possible` reads values as params.yaml, told where they are from, and raises what is wrong with them.
    """
    for point in grid(section):
        possible(applied(values, point), f"search with {spoken(point)}")


def values_of(section: SearchConfig) -> Iterator[tuple[str, Range | tuple[Any, ...]]]:
    """The fields and what they may be, in an order that does not hang on how params.yaml lists them."""
    return iter(sorted(section.fields.items()))
