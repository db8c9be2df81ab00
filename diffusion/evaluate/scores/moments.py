"""Moments and random subsets of features; Fréchet distance and Inception score by torch-fidelity's functions.

FID: Heusel et al. 2017 (1706.08500). IS: Salimans et al. 2016 (1606.03498). torch-fidelity does not document
these functions; its version is pinned, and a test compares with its `calculate_metrics`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.protocol.card import SEED, is_splits

Float = NDArray[np.float64]
Rows = NDArray[np.integer[Any]]

BLOCK = 8192  # rows held in float64 at a time: 84 MB with 1,280 features


class Estimate(NamedTuple):
    """The mean of a score over subsets or splits, and its standard deviation."""

    mean: float
    std: float


class Statistics(NamedTuple):
    """The mean (D,) and covariance (D, D) of a set's features."""

    mu: NDArray[np.floating[Any]]
    sigma: Float


def mean_and_scatter(vectors: NDArray[np.floating[Any]], rows: Rows | None = None) -> tuple[Float, Float]:
    """Return the mean (D,) and Σ (x − mean)(x − mean)ᵀ (D, D), float64, of vectors (N, D) or of some rows.

    They are computed block by block, in constant memory.
    """
    rows = np.arange(len(vectors)) if rows is None else rows
    parts = [rows[part] for part in blocks(len(rows))]
    mean = sum(vectors[part].astype(np.float64).sum(axis=0) for part in parts) / len(rows)
    scatter = np.zeros(2 * mean.shape)
    for part in parts:
        x = vectors[part].astype(np.float64) - mean
        scatter += x.T @ x
    return mean, scatter


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of at most BLOCK of `count` rows."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def random_subset(features: FeatureArray, most: int) -> FeatureArray:
    """Return the features, or `most` random rows in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]


def statistics(features: FeatureArray) -> Statistics:
    """Return the mean and unbiased covariance of features (N, D), N ≥ 2.

    torch-fidelity copies the features twice in float64. For many images, the mean is its float32 mean and the
    covariance is computed in blocks.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics

    if len(features) > BLOCK:
        return Statistics(np.mean(features, axis=0), mean_and_scatter(features)[1] / (len(features) - 1))
    return Statistics(**fid_features_to_statistics(torch.from_numpy(features)))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return ‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2(Σ_aΣ_b)^½) (1706.08500, eq. 6). Biased upwards at small N."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(a._asdict(), b._asdict(), verbose=False)[KEY_METRIC_FID])


def inception_score(logits: FeatureArray) -> Estimate:
    """Return exp(E KL(p(y|x) ‖ p(y))) over splits of the images, from logits (N, K).

    torch-fidelity is called per split; for all splits at once it copies the logits three times in float64.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    count, splits = len(logits), is_splits(len(logits))
    order = np.random.RandomState(SEED).permutation(count)
    parts = (order[i * count // splits : (i + 1) * count // splits] for i in range(splits))
    values = [
        isc_features_to_metric(torch.from_numpy(logits[part]), 1, False)[KEY_METRIC_ISC_MEAN]
        for part in parts
    ]
    return Estimate(float(np.mean(values)), float(np.std(values)))
