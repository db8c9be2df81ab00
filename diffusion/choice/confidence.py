"""Confidence intervals of scores, and significance of the difference between two scores.

A cell's `errors` are, by the name of a score, the contributions of groups of images and random subsets to its
error: their squares sum to the variance. Two cells that start from the same noise, image by image, share a
part of it: the products of their errors sum to the covariance.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.protocol.card import GROUPS, differing_fields
from diffusion.protocol.grid import DERIVED_FIELDS
from diffusion.protocol.scores import ImageScores, unpack
from diffusion.protocol.settings import AXES

CONFIDENCE = 0.95
NORMAL = 1.959964  # standard deviations of a 95 % interval

Errors = NDArray[np.float32]

SAME_NOISE = ("model_sha256", *AXES, *DERIVED_FIELDS)  # cells that differ in these alone share x_T by index


class Interval(NamedTuple):
    """The ends of a score's confidence interval."""

    low: float
    high: float


HOW = {
    "pairs of images": "paired by image",
    "independent images": "of independent images",
    "trainings": "between trainings of other seeds",
}


class Gap(NamedTuple):
    """A score minus another one, half of the confidence interval of that gap, and how it was estimated."""

    value: float
    half: float
    between: Literal["pairs of images", "independent images", "trainings"]

    @property
    def is_significant(self) -> bool:
        """Whether the gap is larger than half of its confidence interval."""
        return abs(self.value) > self.half

    @property
    def how(self) -> str:
        """How the interval was estimated, as text."""
        return HOW[self.between]


def interval(value: float, deviation: float, positive: bool = False) -> Interval:
    """Return the confidence interval of a score with this standard deviation.

    For a `positive` score it is that of the logarithm, since the spread grows with the value, unless the
    plain interval reaches zero.
    """
    half = NORMAL * deviation
    if positive and half < value:
        return Interval(value * math.exp(-half / value), value * math.exp(half / value))
    return Interval(value - half, value + half)


def errors_of(cell: ImageScores, metric: str) -> Errors | None:
    """Return the errors of a cell's score, or None. The excess has those of its distance."""
    lines = cell.errors.get(cell.spec.distance if metric == "excess" else metric)
    return None if lines is None else np.array(unpack(lines), np.float32)


def interval_of(cell: ImageScores, metric: str) -> Interval | None:
    """Return the confidence interval of a cell's score, or None."""
    scores = cell.scores
    if f"{metric}_low" not in scores:
        return None
    return Interval(scores[f"{metric}_low"], scores[f"{metric}_high"])


def share_noise(cell: ImageScores, other: ImageScores) -> bool:
    """Return whether image i of both starts from the same noise: only model and axes may differ."""
    cards = cell.card, other.card
    return cards[0].get("seed") is not None and not differing_fields(cards, SAME_NOISE)


def gap(cell: ImageScores, other: ImageScores, metric: str) -> Gap | None:
    """Return the gap between two cells that differ in model and axes alone; None if one has no errors.

    It is paired if the cells share their noise; else the variances of independent errors add.
    """
    a, b = errors_of(cell, metric), errors_of(other, metric)
    if a is None or b is None:
        return None
    value = cell.scores[metric] - other.scores[metric]
    if not share_noise(cell, other):
        return Gap(value, NORMAL * math.hypot(*map(np.linalg.norm, (a, b))), "independent images")
    groups = min(int(np.count_nonzero(a)), GROUPS)
    return Gap(value, student(max(1, groups - 1)) * float(np.linalg.norm(a - b)), "pairs of images")


def student(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t; degrees of freedom may be a fraction."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def describe_comparison(gaps: Iterable[Gap | None]) -> str:
    """Return how the intervals of these gaps were estimated, as text; empty without gaps."""
    return " or ".join(sorted({gap.how for gap in gaps if gap is not None}, reverse=True))
