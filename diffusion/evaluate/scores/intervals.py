"""Confidence intervals of scores: how far they would move if the same model had made other images.

The bootstrap (Efron 1979) resamples images. Repeated whole, an image would count as two that agree in every
feature, which overstates a Fréchet distance's spread several times while images are fewer than features.
So what is resampled is each image's pull on the score: what the score of the others lacks without it, exact
for every image (the jackknife's pseudo-values; it errs to the wide side, Efron & Stein 1981).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.protocol.scores import Scored
from diffusion.protocol.scoring import SEED

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The ends of a score's confidence interval."""

    low: float
    high: float


def bootstrap(value: float, without_each: NDArray[np.float64], resamples: int) -> Interval:
    """The interval around `value` from the scores of N − 1 images, each time without another one.

    The 95 % interval of `resamples` draws of N images, with replacement and a fixed seed.
    """
    count = len(without_each)
    pulls = (count - 1) * (without_each.mean() - without_each)
    draw = np.random.default_rng(SEED)
    means = [pulls.take(draw.integers(count, size=count)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value + float(low), value + float(high))


def interval_of(cell: Scored, metric: str) -> Interval | None:
    """The interval of a cell's score, None where it has none.

    The floor does not move with the images, so the excess is as uncertain as its distance.
    """
    scores, shift = cell.scores, 0.0
    if metric == "excess" and "floor" in scores:
        metric, shift = cell.spec.distance, scores["floor"]
    if f"{metric}_low" not in scores:
        return None
    return Interval(scores[f"{metric}_low"] - shift, scores[f"{metric}_high"] - shift)


def is_tied(a: float, of_a: Interval | None, b: float, of_b: Interval | None) -> bool:
    """Whether the gap between two scores is inside its confidence interval; not where one has none."""
    return of_a is not None and of_b is not None and not told_apart(a, of_a, b, of_b)


def told_apart(a: float, of_a: Interval, b: float, of_b: Interval) -> bool:
    """Whether the gap between two independent scores is outside the confidence interval of their difference.

    The halves that face each other add in quadrature, as independent errors do.
    """
    lower, upper = sorted([(a, of_a), (b, of_b)])
    half = np.hypot(lower[1].high - lower[0], upper[0] - upper[1].low)
    return bool(upper[0] - lower[0] > half)
