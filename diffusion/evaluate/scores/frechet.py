"""The Fréchet distance of many samples to one reference, exact and fast where images are few.

Tr (Σ_a Σ_b)^½ is the sum of the singular values of X L/√(N−1), where X (N, D) are the sample's centred
features and L Lᵀ = Σ_b: eigenvalues of an N × N matrix where N < D, instead of torch-fidelity's D × D.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.scores.jackknife import Interactions
from diffusion.evaluate.scores.moments import Float, blocks, merged_moments, moments
from diffusion.evaluate.scores.spectral import root_sum_interactions

Rows = NDArray[np.integer[Any]]

NEGLIGIBLE = 1e-12  # of the largest eigenvalue: what may be rounding moves no difference between images
ROUNDING = 1e-9  # below this a determinant that is 0 by algebra is rounding
STEP = 0.5  # of the quadrature, in log t
TAIL = 28.0  # how far it goes beyond the eigenvalues, in log t: e^(−TAIL/2) of the whole is left out


class Target:
    """A reference's Gaussian: `mean` (D,), `trace` of its covariance Σ, `root` (D, r) with root·rootᵀ = Σ."""

    def __init__(self, features: FeatureArray) -> None:
        count, dimension = features.shape
        self.mean: Float
        self.root: Float
        if count <= 2 * dimension:
            x = features.astype(np.float64)
            self.mean = x.mean(axis=0)
            x -= self.mean
            self.trace = float((x**2).sum() / (count - 1))
            self.root = x.T / np.sqrt(count - 1)
        else:
            whole = moments(features)
            self.mean = whole.mean
            self.trace = float(whole.covariance.trace())
            values, vectors = np.linalg.eigh(whole.covariance)
            self.root = vectors * np.sqrt(values.clip(0))


class Spectrum(NamedTuple):
    """Of centred y (N, r): the eigenvalues λ of the smaller of yᵀy and y yᵀ, rising, and its eigenvectors.

    There are no `vectors` (·, k) of those eigenvalues that may be rounding alone.
    """

    values: Float
    vectors: Float
    y: Float

    @property
    def kept(self) -> Float:
        """(k,) the eigenvalues that are no rounding."""
        return self.values[len(self.values) - self.vectors.shape[1] :]

    def leverage(self, rows: slice) -> Float:
        """(n, k) of n of the images the leverage (y_i·v_k)²/λ_k, v_k an eigenvector of yᵀy."""
        if _is_wide(self.y):
            return np.asarray(self.vectors[rows] ** 2)
        return np.asarray((self.y[rows] @ self.vectors) ** 2 / self.kept)


class ProjectedSample:
    """A sample's features (N, D) before a target, from which the distances of its subsets come cheaply.

    What is held of them in float64 is how the target sees them, once; all else is had block by block.
    """

    def __init__(self, features: FeatureArray, target: Target) -> None:
        self.features, self.origin, self.trace = features, target.mean, target.trace
        self.seen: Float = np.empty((len(features), target.root.shape[1]))
        for rows in blocks(len(features)):
            self.seen[rows] = self._moved(rows) @ target.root
        self.seen -= self.seen.mean(axis=0)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def distance(self) -> float:
        """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2(Σ_aΣ_b)^½) (1706.08500, eq. 6) of all N ≥ 2 images."""
        return self._distance(np.arange(len(self)), self._spectrum.values)

    def distance_of(self, rows: Rows) -> float:
        """The distance of two or more of the images."""
        return self._distance(rows, np.asarray(np.linalg.eigvalsh(self._gram_of(rows))))

    def leave_one_out(self) -> Float:
        """(N,) the distance of the sample without each of its N ≥ 3 images, exact for all at once."""
        count = len(self)
        mean = self._sums(np.arange(count))[0] / count
        share = count / (count - 1)  # without image i the scatter is less by share · x_i x_iᵀ
        norms, means = np.empty((2, count))
        for rows in blocks(count):
            x = self._moved(rows) - mean
            norms[rows] = (x**2).sum(axis=1)
            means[rows] = ((mean - x / (count - 1)) ** 2).sum(axis=1)
        traces = (norms.sum() - share * norms) / (count - 2)
        roots = _singular_sums_without_each(self._spectrum, share) / np.sqrt(count - 2)
        return np.asarray(means + traces + self.trace - 2 * roots)

    def interactions(self) -> Interactions:
        """What the images bring together to the distance's variance.

        It is all in the roots: mean and trace together are nearly a sum over images.
        """
        found, factor = root_sum_interactions(self._spectrum.kept, len(self) - 1), 4 / (len(self) - 1)
        return Interactions(factor * found.surplus, factor * found.own)

    @cached_property
    def _gram(self) -> Float:
        return _smaller_gram(self.seen)

    def _gram_of(self, rows: Rows) -> Float:
        """That of some of the images, centred: a part of the whole one where that is between images."""
        if not _is_wide(self.seen):
            return self._centred_gram(rows)
        part = self._gram[np.ix_(rows, rows)]
        means = part.mean(axis=0)
        return np.asarray(part - means - means[:, None] + means.mean())

    def _centred_gram(self, rows: Rows) -> Float:
        """Of some of more images than the target has directions."""
        if len(rows) <= self.seen.shape[1]:
            seen = self.seen[rows]
            return _smaller_gram(seen - seen.mean(axis=0))
        return merged_moments(self.seen[rows[part]] for part in blocks(len(rows))).scatter

    @cached_property
    def _spectrum(self) -> Spectrum:
        """Of yᵀy, y the centred images."""
        values, vectors = np.linalg.eigh(self._gram)
        values = values.clip(0)
        return Spectrum(values, vectors[:, values > NEGLIGIBLE * values[-1]], self.seen)

    def _moved(self, rows: slice | Rows) -> Float:
        """(n, D) the features of some images in float64, less the target's mean."""
        return np.asarray(self.features[rows].astype(np.float64) - self.origin)

    def _sums(self, rows: Rows) -> tuple[Float, float]:
        """Of some images the sum of what _moved gives, (D,), and that of all its squares."""
        total, squares = np.zeros(len(self.origin)), 0.0
        for part in blocks(len(rows)):
            x = self._moved(rows[part])
            total += x.sum(axis=0)
            squares += (x**2).sum()
        return total, squares

    def _distance(self, rows: Rows, values: Float) -> float:
        total, squares = self._sums(rows)
        count = len(rows)
        mean = total / count
        spread = (squares - count * (mean**2).sum()) / (count - 1)
        roots = np.sqrt(values.clip(0) / (count - 1)).sum()
        return float((mean**2).sum() + spread + self.trace - 2 * roots)


def _is_wide(y: Float) -> bool:
    return bool(len(y) <= y.shape[1])


def _smaller_gram(y: Float) -> Float:
    """y yᵀ or yᵀ y, whichever is smaller: they share their eigenvalues but for zeros."""
    return np.asarray(y @ y.T if _is_wide(y) else y.T @ y)


def _singular_sums_without_each(spectrum: Spectrum, share: float) -> Float:
    """(N,) Σ √μ over the eigenvalues μ of yᵀy − share · y_i y_iᵀ, for each of the N rows.

    √λ = 1/π ∫ λ/(λ + t) t^(−½) dt turns the sum's fall into an integral over the derivative of the
    determinant's, log(1 − share · q_i(t)) with q_i(t) = Σ_k w_ik/(λ_k + t), where w_ik = (y_i·v_k)². It is
    taken by the trapezoid rule in log t. With the leverage h_ik = w_ik/λ_k the determinant is
    1 − share · Σ_k h_ik + share · Σ_k h_ik t/(λ_k + t): no term cancels another, also where an image has a
    direction to itself, as all have while they are fewer than features. There the first two are 0.
    """
    values, count = spectrum.kept, len(spectrum.y)
    if not len(values):  # all images are equal
        return np.zeros(count)
    t = np.exp(np.arange(np.log(values[0]) - TAIL, np.log(values[-1]) + TAIL, STEP))
    inverse = 1 / (values[:, None] + t)
    sums = np.empty(count)
    for rows in blocks(count):
        leverage = spectrum.leverage(rows)
        rest = 1 - share * leverage.sum(axis=1)
        rest[rest < ROUNDING] = 0
        determinants = rest[:, None] + share * t * (leverage @ inverse)
        falls = share * t * ((leverage * values) @ inverse**2) / determinants
        sums[rows] = np.sqrt(values).sum() - (falls * np.sqrt(t)).sum(axis=1) * STEP / np.pi
    return sums
