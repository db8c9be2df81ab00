"""Mean, scatter and random subsets of any number of vectors, block by block, in constant memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.protocol.card import SEED

Float = NDArray[np.float64]
Rows = NDArray[np.integer[Any]]

BLOCK = 8192  # rows held in float64 at a time: 84 MB with 1,280 features


def mean_and_scatter(vectors: NDArray[np.floating[Any]], rows: Rows | None = None) -> tuple[Float, Float]:
    """Return the mean (D,) and Σ (x − mean)(x − mean)ᵀ (D, D), float64, of vectors (N, D) or of some rows."""
    rows = np.arange(len(vectors)) if rows is None else rows
    mean = sum(_float64(vectors, rows[part]).sum(axis=0) for part in blocks(len(rows))) / len(rows)
    scatter = np.zeros(2 * mean.shape)
    for part in blocks(len(rows)):
        x = _float64(vectors, rows[part]) - mean
        scatter += x.T @ x
    return mean, scatter


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of at most BLOCK of `count` rows."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _float64(vectors: NDArray[np.floating[Any]], rows: Rows) -> Float:
    return vectors[rows].astype(np.float64)


def random_subset(features: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Return the features, or `most` random rows in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]
