"""Features → statistics → scores, each by torch-fidelity's own functions.

FID: Heusel et al. 2017 (1706.08500). KID: Bińkowski et al. 2018 (1801.01401), unbiased at every N.
IS: Salimans et al. 2016 (1606.03498). torch-fidelity does not document these functions, so its version is
pinned narrowly and a test compares with its `calculate_metrics`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.evaluation.features import Array, Features
from diffusion.evaluation.specs import ExtractorSpec

KID_SUBSETS = 100
KID_SUBSET_SIZE = 500  # at most
IS_SPLITS = 10  # at most
SEED = 2020  # torch-fidelity's own default: which images a subset or a split gets


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set's features."""

    mu: NDArray[np.floating[Any]]
    sigma: NDArray[np.float64]


class Estimate(NamedTuple):
    """The mean of a score over subsets or splits, and its standard deviation between them."""

    mean: float
    std: float


def statistics(features: Array) -> Statistics:
    """Mean and unbiased covariance of features (N, D), N ≥ 2."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return Statistics(**fid_features_to_statistics(torch.from_numpy(features)))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2(Σ_aΣ_b)^½) (1706.08500, eq. 6). Biased upwards at small N."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(a._asdict(), b._asdict(), verbose=False)[KEY_METRIC_FID])


def kid_subset_size(count: int, reference_count: int) -> int:
    """Images a subset: half of the smaller set, at least 2 and at most 500."""
    return max(2, min(KID_SUBSET_SIZE, count // 2, reference_count // 2))


def kernel_distance(features: Array, reference: Array) -> Estimate:
    """Squared MMD with the cubic kernel of KID over 100 random subsets; near 0 may be slightly negative."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    values = kid_features_to_metric(
        torch.from_numpy(features),
        torch.from_numpy(reference),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset_size(len(features), len(reference)),
        rng_seed=SEED,
        verbose=False,
    )
    return Estimate(values[KEY_METRIC_KID_MEAN], values[KEY_METRIC_KID_STD])


def is_splits(count: int) -> int:
    """Splits of an Inception score: 10, or fewer where there are fewer images."""
    return min(IS_SPLITS, count)


def inception_score(logits: Array) -> Estimate:
    """exp(E KL(p(y|x) ‖ p(y))) over splits of the images, from logits (N, K)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    values = isc_features_to_metric(torch.from_numpy(logits), is_splits(len(logits)), True, SEED)
    return Estimate(values[KEY_METRIC_ISC_MEAN], values[KEY_METRIC_ISC_STD])


def all_scores(
    spec: ExtractorSpec, sample: Features, reference: Array, reference_statistics: Statistics
) -> dict[str, float]:
    """Every score of a sample under the extractor's own names, with `…_std` where there is one."""
    kernel = kernel_distance(sample.features, reference)
    score = inception_score(sample.logits)
    return {
        spec.distance: frechet_distance(statistics(sample.features), reference_statistics),
        spec.kernel_distance: kernel.mean,
        f"{spec.kernel_distance}_std": kernel.std,
        spec.score: score.mean,
        f"{spec.score}_std": score.std,
    }
