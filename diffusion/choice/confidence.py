"""How sure a score of a document is, and whether two scores differ by more than chance.

A cell's `errors` hold, by the name of a score, what groups of images and random subsets add to its error:
the squares sum to its variance. Two cells that start from the same noise, image by image, share a part of
it: the products of their errors sum to the covariance.
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

SAME_NOISE = (
    "model_sha256",
    *AXES,
    *DERIVED_FIELDS,
)  # what two cells may differ in and still share x_T by index


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
    """A score less another one, half of that gap's confidence interval, and between what chance is."""

    value: float
    half: float
    between: Literal["pairs of images", "independent images", "trainings"]

    @property
    def is_significant(self) -> bool:
        """Whether it is outside what chance does."""
        return abs(self.value) > self.half

    @property
    def how(self) -> str:
        """In words, which interval it is held against."""
        return HOW[self.between]


def interval(value: float, deviation: float, positive: bool = False) -> Interval:
    """The interval of a score with this standard deviation.

    That of one that is `positive` is taken of its logarithm, since its spread grows with it: it reaches
    further up than down. Not where it would reach to zero.
    """
    half = NORMAL * deviation
    if positive and half < value:
        return Interval(value * math.exp(-half / value), value * math.exp(half / value))
    return Interval(value - half, value + half)


def errors_of(cell: ImageScores, metric: str) -> Errors | None:
    """The errors of a cell's score, None where it has none.

    Those of the excess are its distance's: what they compare has one floor.
    """
    lines = cell.errors.get(cell.spec.distance if metric == "excess" else metric)
    return None if lines is None else np.array(unpack(lines), np.float32)


def interval_of(cell: ImageScores, metric: str) -> Interval | None:
    """The interval of a cell's score, None where it has none."""
    scores = cell.scores
    if f"{metric}_low" not in scores:
        return None
    return Interval(scores[f"{metric}_low"], scores[f"{metric}_high"])


def share_noise(cell: ImageScores, other: ImageScores) -> bool:
    """Whether image i of both starts from the same noise: one seed and protocol but for model and axes."""
    cards = cell.card, other.card
    return cards[0].get("seed") is not None and not differing_fields(cards, SAME_NOISE)


def gap(cell: ImageScores, other: ImageScores, metric: str) -> Gap | None:
    """The gap between two cells of one protocol but for model and axes; None where one has no errors.

    Paired where the cells share their noise; else as of independent errors, whose variances add.
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
    """The two-sided 95 % quantile of Student's t with so many degrees of freedom, which may be a fraction."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def describe_comparison(gaps: Iterable[Gap | None]) -> str:
    """In words, which intervals these gaps are held against; empty without any."""
    return " or ".join(sorted({gap.how for gap in gaps if gap is not None}, reverse=True))
