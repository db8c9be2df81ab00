"""How far a score would move if the same model had made other images: an error a group of images.

The jackknife (Efron & Stein 1981) takes each image's pull, what the score of the others lacks without it,
for its part of the error: the variance is the sum of their squares. A score is more than a sum over images,
though. By Hoeffding's decomposition its variance is Σ_k σ_k², σ_k² of what k images bring together, and the
jackknife's is Σ_k k·σ_k² on average: about twice as much for a Fréchet distance near its floor. What is known
of a score's interactions takes the surplus away again.

The bootstrap of whole images would not do: repeated, an image counts as two that agree in every feature.
"""

from typing import NamedTuple

import numpy as np

from diffusion.evaluate.scores.moments import Float
from diffusion.protocol.metric_constants import GROUPS, SEED


class Interactions(NamedTuple):
    """Of a score's variance: `surplus` = Σ_k (k − 1)·σ_k², and `own` = Σ_k σ_k² over k ≥ 2 images."""

    surplus: float
    own: float


def image_errors(without_each: Float, interactions: Interactions) -> Float:
    """(N,) what each of N ≥ 3 images adds to the error of a score; their squares sum to its variance.

    `without_each` holds the scores of N − 1 images, to within a constant. No less is left than the
    interactions' own variance.
    """
    count = len(without_each)
    errors = np.sqrt((count - 1) / count) * (without_each.mean() - without_each)
    expected = float((errors**2).sum())
    if expected == 0:
        return np.asarray(errors)
    variance = max(expected - interactions.surplus, min(interactions.own, expected))
    return np.asarray(errors * np.sqrt(variance / expected))


def grouped(errors: Float) -> Float:
    """(GROUPS,) the errors of groups, at most one an image, with the same sum of squares.

    Image i is in the same group in every set of as many images, so that the products of two sets' groups sum
    to the covariance of their scores where images of one index belong together.
    """
    count = len(errors)
    groups = np.random.default_rng(SEED).permutation(count) % GROUPS
    sums = np.bincount(groups, errors, minlength=GROUPS)
    size = float(np.linalg.norm(sums))
    return np.asarray(sums * (np.linalg.norm(errors) / size) if size else sums)
