"""Confidence intervals of scores, and significance of the difference between two scores.

A cell's `errors` are, by the name of a score, the contributions of groups of images and random subsets to its
error: their squares sum to the variance. Two cells that start from the same noise, image by image, share a
part of it: the products of their errors sum to the covariance.

Trainings that differ in their seed alone form a group. The seed moves a score by more than the choice of
images does, and the interval of a single training does not contain that. Cells of one sampling seed share
their x_T in all trainings: its effect is equal on both sides of a gap.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.protocol.card import GROUPS, NETWORK_DIGESTS, STATISTICS_FIELDS, Card, differing_fields
from diffusion.protocol.grid import DERIVED_FIELDS, OPTION_FIELDS, sampling_version
from diffusion.protocol.option_tables import AXES
from diffusion.protocol.scores_document import CellScores, ImageScores, ScoresDocument, unpack
from diffusion.protocol.spacing import LEARNED

CONFIDENCE = 0.95
NORMAL = 1.959964  # standard deviations of a 95 % interval

Trainings = Sequence[ImageScores]  # one cell of the trainings of a group

# The compared networks: fields of a card that may differ.
SUBJECT = (*NETWORK_DIGESTS, "ema", "weighted_nfe")
OF_MODEL = '"model_sha256":"'  # in the `spacing_options` of times that were learned for a model
# Cells that differ in these alone share x_T by index.
SAME_NOISE = ("model_sha256", "base", *AXES, *DERIVED_FIELDS, *OPTION_FIELDS)


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


def errors_of(cell: ImageScores, metric: str) -> NDArray[np.float32] | None:
    """Return the errors of a cell's score, or None. The excess has those of its distance."""
    lines = cell.errors.get(cell.spec.distance if metric == "excess" else metric)
    return None if lines is None else unpack(lines)


def interval_of(cell: ImageScores, metric: str) -> Interval | None:
    """Return the confidence interval of a cell's score, or None."""
    scores = cell.scores
    if f"{metric}_low" not in scores:
        return None
    return Interval(scores[f"{metric}_low"], scores[f"{metric}_high"])


def noise_differences(cards: Sequence[Card]) -> dict[str, list[Any]]:
    """Return the fields in which cards differ, except model and axes, each with its values.

    Without differences image i of all starts from the same noise. A guidance rule with a sampling version of
    its own changes no noise.
    """
    return differing_fields([_with_version_of_noise(card) for card in cards], SAME_NOISE)


def _with_version_of_noise(card: Card) -> Card:
    """Return a card with the sampling version of the same images without a guidance rule."""
    if card.get("sampling_version") != sampling_version(card):
        return card  # of other code
    return {**card, "sampling_version": sampling_version({**card, "guidance_rule": None})}


def share_noise(cell: ImageScores, other: ImageScores) -> bool:
    """Return whether image i of both starts from the same noise: only model and axes may differ."""
    cards = [cell.card, other.card]
    return cards[0].get("seed") is not None and not noise_differences(cards)


def card_diff(
    cell: ImageScores, other: ImageScores, free: Collection[str] = STATISTICS_FIELDS
) -> dict[str, list[Any]]:
    """Return the fields in which the cards differ, except networks and `free`, each with both values.

    Times that were learned for a model are part of it: only the fact that they are learned is compared.
    """
    return differing_fields([_without_times(one.card) for one in (cell, other)], (*SUBJECT, *free))


def _without_times(card: Card) -> Card:
    """Return a card without the noise levels that were learned for its model."""
    is_learned = OF_MODEL in str(card.get("spacing_options"))
    return {**card, "spacing_options": LEARNED} if is_learned else card


def gap(cell: ImageScores, other: ImageScores, metric: str) -> Gap | None:
    """Return the gap of two cells, paired if they share their noise; None if one has no errors."""
    a, b = errors_of(cell, metric), errors_of(other, metric)
    if a is None or b is None:
        return None
    value = cell.scores[metric] - other.scores[metric]
    if not share_noise(cell, other):
        return Gap(value, NORMAL * math.hypot(*map(np.linalg.norm, (a, b))), "independent images")
    groups = int(np.count_nonzero(a[:GROUPS]))  # without the errors of random subsets
    return Gap(value, student(max(1, groups - 1)) * float(np.linalg.norm(a - b)), "pairs of images")


def student(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t; degrees of freedom may be a fraction."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def describe_comparison(gaps: Iterable[Gap | None]) -> str:
    """Return how the intervals of these gaps were estimated, as text; empty without gaps."""
    return " or ".join(sorted({gap.how for gap in gaps if gap is not None}, reverse=True))


def cells_by_seed(documents: Iterable[ScoresDocument], name: str, bar: CellScores) -> dict[int, CellScores]:
    """Return a cell of trainings by their seed, if its protocol is that of `bar`; the first one of a seed."""
    found: dict[int, CellScores] = {}
    for document in documents:
        cell = document.cells.get(name)
        if document.training is not None and cell is not None and not card_diff(bar, cell):
            found.setdefault(document.training.seed, cell)
    return found


def mean_of(cells: Trainings, metric: str) -> float:
    """Return the mean of a score over the trainings."""
    return statistics.fmean(cell.scores[metric] for cell in cells)


def deviation_of(cells: Trainings, metric: str) -> float | None:
    """Return the standard deviation of a score between trainings; None for a single one."""
    return statistics.stdev(cell.scores[metric] for cell in cells) if len(cells) > 1 else None


def mean_interval(cells: Trainings, metric: str) -> Interval | None:
    """Return the interval of the mean over seeds by Student's t; of one training, that of its images."""
    if len(cells) < 2:
        return interval_of(cells[0], metric)
    return student_interval([cell.scores[metric] for cell in cells])


def student_interval(values: Sequence[float]) -> Interval:
    """Return the interval of the mean of two or more independent values, by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    half = student(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean - half, mean + half)


def group_gap(cells: Trainings, others: Trainings, metric: str) -> Gap | None:
    """Return the gap between the means of two groups; None if two single trainings have no errors.

    Two groups are compared by their own spreads (Welch 1947), a single training with a group by the spread of
    the group. For two single trainings only the images count, as in `gap`.
    """
    spreads = [(deviation_of(side, metric), len(side)) for side in (cells, others)]
    known = [(deviation**2 / count, count) for deviation, count in spreads if deviation is not None]
    if not known:
        return gap(cells[0], others[0], metric)
    value = mean_of(cells, metric) - mean_of(others, metric)
    if len(known) == 1:
        ((variance, count),) = known
        return Gap(value, student(count - 1) * math.sqrt(variance * (1 + count)), between="trainings")
    total = sum(variance for variance, _ in known)
    if not total:
        return Gap(value, 0.0, between="trainings")
    freedom = total**2 / sum(variance**2 / (count - 1) for variance, count in known)
    return Gap(value, student(freedom) * math.sqrt(total), between="trainings")
