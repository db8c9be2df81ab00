"""Mean, covariance and random subsets of any number of vectors, block by block, in constant memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.protocol.card import SEED

Float = NDArray[np.float64]

BLOCK = 8192  # rows held in float64 at a time: 84 MB with 1,280 features


@dataclass(frozen=True)
class Moments:
    """Moments of N vectors: `count`, `mean` (D,), and `scatter` (D, D) = Σ (x − mean)(x − mean)ᵀ."""

    count: int
    mean: Float
    scatter: Float

    @property
    def covariance(self) -> Float:
        """The unbiased covariance (D, D) of at least two vectors."""
        return self.scatter / (self.count - 1)

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        between = self.count * other.count / count
        return Moments(
            count,
            self.mean + gap * (other.count / count),
            self.scatter + other.scatter + between * np.outer(gap, gap),
        )


def moments(features: NDArray[np.float32]) -> Moments:
    """Return the moments of features (N, D), N ≥ 1, in float64."""
    return merged_moments(features[rows] for rows in blocks(len(features)))


def merged_moments(parts: Iterable[NDArray[np.floating[Any]]]) -> Moments:
    """Return the moments of one or more parts (n, D) together. Only one part at a time is in float64."""
    return reduce(Moments.merged, map(_of_block, parts))


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of at most BLOCK of `count` rows."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _of_block(features: NDArray[np.floating[Any]]) -> Moments:
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    return Moments(len(x), mean, x.T @ x)


def random_subset(features: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Return the features, or `most` random rows in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]
