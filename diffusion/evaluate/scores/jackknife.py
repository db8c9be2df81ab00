"""Sampling errors of scores: how much a score would change with other images of the same model.

The jackknife (Efron & Stein 1981) takes the change of a score without one image as that image's part of the
error; the variance is the sum of squares. A score is more than a sum over images. By Hoeffding's
decomposition its variance is Σ_k σ_k², where σ_k² belongs to interactions of k images, and the jackknife
estimates Σ_k k·σ_k²: about twice too much for a Fréchet distance near its floor. Known interactions correct
for it.

The bootstrap is not suitable: a repeated image acts as two images that agree in every feature.
"""

from typing import NamedTuple

import numpy as np

from diffusion.evaluate.scores.moments import Float
from diffusion.protocol.card import GROUPS, SEED

STEP = 0.5  # of the quadrature, in log t
TAIL = 12.0  # of the quadrature beyond the eigenvalues, in log t


class Interactions(NamedTuple):
    """Parts of a score's variance: `surplus` = Σ_k (k − 1)·σ_k², and `own` = Σ_k σ_k² over k ≥ 2 images."""

    surplus: float
    own: float


def image_errors(without_each: Float, interactions: Interactions) -> Float:
    """Return (N,) the part of each of N ≥ 3 images in the error of a score; squares sum to the variance.

    `without_each` are the scores of N − 1 images, up to a constant. The variance is at least that of the
    interactions.
    """
    count = len(without_each)
    errors = np.sqrt((count - 1) / count) * (without_each.mean() - without_each)
    expected = float((errors**2).sum())
    if expected == 0:
        return np.asarray(errors)
    variance = max(expected - interactions.surplus, min(interactions.own, expected))
    return np.asarray(errors * np.sqrt(variance / expected))


def grouped(errors: Float) -> Float:
    """Return (GROUPS,) the errors of groups of images, with the same sum of squares.

    Image i is in the same group for all sets of equal size. So the products of two sets' groups sum to the
    covariance of their scores if images with equal indices are paired.
    """
    count = len(errors)
    groups = np.random.default_rng(SEED).permutation(count) % GROUPS
    sums = np.bincount(groups, errors, minlength=GROUPS)
    size = float(np.linalg.norm(sums))
    return np.asarray(sums * (np.linalg.norm(errors) / size) if size else sums)


def quadrature(values: Float, tail: float) -> tuple[Float, Float]:
    """Return t (T,), evenly spaced in log t to `tail` beyond the ascending `values` (k,), and 1/(λ_k + t)."""
    t = np.exp(np.arange(np.log(values[0]) - tail, np.log(values[-1]) + tail, STEP))
    return t, 1 / (values[:, None] + t)


def root_sum_interactions(values: Float, freedom: int) -> Interactions:
    """Return the interactions of Σ √λ over the non-zero eigenvalues `values` (k,), ascending, of a scatter.

    √λ = 1/2π ∫ log(1 + λ/t) t^(−½) dt, and log det(S + s) and log det(S + t) of a random scatter S with
    `freedom` degrees of freedom have the covariance −2 log(1 − a) = Σ_k 2 aᵏ/k (Bai & Silverstein 2004, th.
    1.1). The k-th term belongs to cycles of k images. By the Silverstein equation 1 − a(s, t) = m(s) m(t) (t
    − s)/(m(s) − m(t)), where m(t) is the mean of 1/(λ + t) over as many eigenvalues as degrees of freedom,
    zeros included. So only measured values enter. The formula assumes many directions and Gaussian second and
    fourth moments. Subtracting the mean adds an interaction of pairs, 2a/N, which matters for few directions.
    """
    if not len(values):
        return Interactions(0.0, 0.0)
    values = values[-freedom:]
    zeros = freedom - len(values)
    t, inverse = quadrature(values, TAIL)
    transform = (inverse.sum(axis=0) + zeros / t) / freedom
    product = (inverse.T @ inverse + zeros / np.outer(t, t)) / freedom  # (m(s) − m(t))/(t − s)
    rest = np.minimum(np.outer(transform, transform) / product, 1)  # 1 − a
    weights = np.sqrt(t) * STEP / (2 * np.pi)
    centring = 2 * (1 - rest) / (freedom + 1)
    own = -2 * (np.log(rest) + (1 - rest)) + centring
    surplus = 2 * (1 - rest) / rest + 2 * np.log(rest) + centring  # the first is Σ_k k · 2 aᵏ/k
    return Interactions(float(weights @ surplus @ weights), float(weights @ own @ weights))
