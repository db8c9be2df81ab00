"""Fréchet distance and Inception score by torch-fidelity's own functions.

FID: Heusel et al. 2017 (1706.08500). IS: Salimans et al. 2016 (1606.03498). torch-fidelity does not document
these functions; its version is pinned, and a test compares with its `calculate_metrics`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.scores.kernel_distance import Estimate
from diffusion.evaluate.scores.moments import BLOCK, mean_and_scatter
from diffusion.protocol.card import SEED, is_splits


class Statistics(NamedTuple):
    """The mean (D,) and covariance (D, D) of a set's features."""

    mu: NDArray[np.floating[Any]]
    sigma: NDArray[np.float64]


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
