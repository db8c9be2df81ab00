"""A sequential t-test of paired differences with a look after every pair, and its confidence intervals.

It is a group-sequential test with one nominal level at all looks (Pocock 1977). Its boundary is a simulation:
t does not depend on the scale of Gaussian differences, so one boundary is exact for all. An anytime-valid
t-test (Wang & Ramdas 2023, 2310.03722) was measured too, and has less power up to 12 pairs (docs/verdict.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

PATHS, SEED = 200_000, 0  # of the simulated boundary; its error probability is exact to ± 0.0005
POWER_PATHS = 20_000
OUTLIER_ERROR = 0.01  # the share of Gaussian samples with an outlier

Values = NDArray[np.float64]
Kind = Literal["better", "worse", "no evidence"]


class Decision(NamedTuple):
    """The decision after `pairs` pairs: `mean` of their differences, and half of its confidence interval.

    A difference is the change's score minus the control's, and lower is better. `half` is infinite before the
    first look. `deviation` is the standard deviation of the differences.
    """

    kind: Kind
    pairs: int
    mean: float
    half: float
    deviation: float


@dataclass(frozen=True)
class PairedTest:
    """The test with a look after each pair from `first` to `last`; `error` is its two-sided error.

    The intervals of all looks contain the true mean with the probability 1 − `error` (repeated confidence
    intervals, Jennison & Turnbull 1989). A test that ends early for another reason errs less.
    """

    first: int = 3
    last: int = 12
    error: float = 0.05

    @property
    def level(self) -> float:
        """The nominal two-sided level of each look."""
        return _nominal_level(self.first, self.last, self.error)

    @cached_property
    def bounds(self) -> dict[int, float]:
        """The bound of |t| at each look, by the number of pairs."""
        from scipy.special import stdtrit

        looks = range(self.first, self.last + 1)
        return {count: float(stdtrit(count - 1, 1 - self.level / 2)) for count in looks}

    def decide(self, differences: Sequence[float]) -> Decision:
        """Return the decision of the first look that makes one, else of all differences so far."""
        found = self.running(differences)
        return next((one for one in found if one.kind != "no evidence"), found[-1])

    def running(self, differences: Sequence[float]) -> list[Decision]:
        """Return the decision after each of these differences by itself, whatever an earlier look decided."""
        found, mean, squares = list[Decision](), 0.0, 0.0
        for count, value in enumerate(differences[: self.last], start=1):
            step = value - mean
            mean += step / count
            squares += step * (value - mean)
            deviation = math.sqrt(squares / (count - 1)) if count > 1 else math.inf
            bound = self.bounds.get(count)
            half = math.inf if bound is None else bound * deviation / math.sqrt(count)
            kind: Kind = "no evidence" if abs(mean) <= half else "better" if mean < 0 else "worse"
            found.append(Decision(kind, count, mean, half, deviation))
        return found

    def detectable(self, pairs: int, power: float = 0.8) -> float:
        """Return the effect in standard deviations that is decided by `pairs` pairs with this power.

        Decisions in the wrong direction are left out: they are rare at such an effect.
        """
        least = np.full(POWER_PATHS, np.inf)  # the effect from which on each path passes a look
        for count, mean, scale in _paths(self.first, pairs, POWER_PATHS):
            np.minimum(least, self.bounds[count] / scale - mean, out=least)
        return float(np.quantile(least, power))


def outliers(differences: Sequence[float]) -> list[int]:
    """Return the places of differences too far from the median for Gaussian ones.

    The distance is a multiple of the median absolute deviation, which a second outlier hardly changes. The
    bound is simulated: OUTLIER_ERROR of Gaussian samples of this size have a difference beyond it.
    """
    if len(differences) < 3:
        return []
    distances, deviation = _distances(np.array([differences]))
    found = np.flatnonzero(distances[0] > _outlier_bound(len(differences)) * deviation[0])
    return [int(place) for place in found]


@lru_cache(maxsize=100)
def _outlier_bound(count: int) -> float:
    distances, deviations = _distances(np.random.default_rng(SEED).normal(size=(POWER_PATHS, count)))
    return float(np.quantile(distances.max(axis=1) / deviations, 1 - OUTLIER_ERROR))


def _distances(samples: Values) -> tuple[Values, Values]:
    """Return the distances of each sample's differences from its median, and the median distance."""
    distances = np.abs(samples - np.median(samples, axis=1, keepdims=True))
    return distances, np.median(distances, axis=1)


@lru_cache(maxsize=100)
def _nominal_level(first: int, last: int, error: float) -> float:
    from scipy.special import stdtr

    least = np.ones(PATHS)
    for count, mean, scale in _paths(first, last, PATHS):
        np.minimum(least, 2 * stdtr(count - 1, -np.abs(mean * scale)), out=least)
    return float(np.quantile(least, error))


def _paths(first: int, last: int, paths: int) -> Iterator[tuple[int, Values, Values]]:
    """Yield (pairs, mean of the noise, √n / its deviation) of each path at every look."""
    draw = np.random.default_rng(SEED)
    total, squares = np.zeros(paths), np.zeros(paths)
    for count in range(1, last + 1):
        noise = draw.normal(size=paths)
        total += noise
        squares += noise * noise
        if count >= first:
            variance = (squares - total * total / count) / (count - 1)
            yield count, total / count, np.sqrt(count / variance)
