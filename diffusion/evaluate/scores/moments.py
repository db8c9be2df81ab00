"""Mean and covariance of any number of images, block by block: what is in memory does not grow with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.memory import BLOCK

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of N vectors: `count`, `mean` (D,), and `scatter` (D, D), the sum of (x − mean)(x − mean)ᵀ."""

    count: int
    mean: Float
    scatter: Float

    @property
    def covariance(self) -> Float:
        """(D, D), unbiased, of two or more vectors."""
        return self.scatter / (self.count - 1)

    def merged(self, other: "Moments") -> "Moments":
        """Those of both sets together (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        between = self.count * other.count / count
        return Moments(
            count,
            self.mean + gap * (other.count / count),
            self.scatter + other.scatter + between * np.outer(gap, gap),
        )


def moments(features: FeatureArray) -> Moments:
    """The moments of features (N, D), N ≥ 1, in float64."""
    return merged_moments(features[rows] for rows in blocks(len(features)))


def merged_moments(parts: Iterable[NDArray[np.floating[Any]]]) -> Moments:
    """The moments of all parts (n, D) together, one or more, each in float64 in its turn."""
    return reduce(Moments.merged, map(_of_block, parts))


def blocks(count: int) -> Iterator[slice]:
    """So many rows, BLOCK at a time."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _of_block(features: NDArray[np.floating[Any]]) -> Moments:
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    return Moments(len(x), mean, x.T @ x)
