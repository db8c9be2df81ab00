"""The Fréchet distance of many samples to one reference, exact and fast for few images.

Tr (Σ_a Σ_b)^½ is the sum of the singular values of X L/√(N−1), where X (N, D) are the sample's centred
features and L Lᵀ = Σ_b. For N < D this needs the eigenvalues of an N × N matrix only.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.scores.jackknife import STEP, Interactions, quadrature, root_sum_interactions
from diffusion.evaluate.scores.moments import Float, Rows, blocks, mean_and_scatter

NEGLIGIBLE = 1e-12  # relative to the largest eigenvalue: may be rounding
ROUNDING = 1e-9  # determinants below this are 0 in exact arithmetic
TAIL = 28.0  # of the quadrature beyond the eigenvalues, in log t; omits a fraction e^(−TAIL/2)


class Target:
    """A reference's Gaussian: `mean` (D,), `trace` of its covariance Σ, `root` (D, r) with root·rootᵀ = Σ."""

    mean: Float
    trace: float
    root: Float

    def __init__(self, features: FeatureArray) -> None:
        count, dimension = features.shape
        if count <= 2 * dimension:
            x = features.astype(np.float64)
            self.mean = x.mean(axis=0)
            x -= self.mean
            self.trace = float((x**2).sum() / (count - 1))
            self.root = x.T / np.sqrt(count - 1)
        else:
            self.mean, scatter = mean_and_scatter(features)
            covariance = scatter / (count - 1)
            self.trace = float(covariance.trace())
            values, vectors = np.linalg.eigh(covariance)
            self.root = vectors * np.sqrt(values.clip(0))


class Spectrum(NamedTuple):
    """Eigenvalues λ of the smaller of yᵀy and y yᵀ for centred y (N, r), ascending, and eigenvectors.

    `vectors` (·, k) has only the k eigenvectors with eigenvalues above rounding.
    """

    values: Float
    vectors: Float
    y: Float

    @property
    def kept(self) -> Float:
        """The k eigenvalues above rounding."""
        return self.values[len(self.values) - self.vectors.shape[1] :]

    def leverage(self, rows: slice) -> Float:
        """Return (n, k) the leverage (y_i·v_k)²/λ_k of n images, with v_k an eigenvector of yᵀy."""
        if _is_wide(self.y):
            return np.asarray(self.vectors[rows] ** 2)
        return np.asarray((self.y[rows] @ self.vectors) ** 2 / self.kept)


class ProjectedSample:
    """A sample's features (N, D) projected on a target in float64, for cheap distances of its subsets."""

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
        """Return the distance of at least two of the images."""
        return self._distance(rows, np.asarray(np.linalg.eigvalsh(self._gram_of(rows))))

    def leave_one_out(self) -> Float:
        """Return (N,) the exact distances of the sample without each of its N ≥ 3 images."""
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
        """Return the interactions of images in the distance's variance, which are all in the roots."""
        found, factor = root_sum_interactions(self._spectrum.kept, len(self) - 1), 4 / (len(self) - 1)
        return Interactions(factor * found.surplus, factor * found.own)

    @cached_property
    def _gram(self) -> Float:
        return _smaller_gram(self.seen)

    def _gram_of(self, rows: Rows) -> Float:
        """Return the smaller centred Gram matrix of some images, taken from the full one if possible."""
        if _is_wide(self.seen):
            part = self._gram[np.ix_(rows, rows)]
            means = part.mean(axis=0)
            return np.asarray(part - means - means[:, None] + means.mean())
        if len(rows) > self.seen.shape[1]:
            return mean_and_scatter(self.seen, rows)[1]
        seen = self.seen[rows]
        return _smaller_gram(seen - seen.mean(axis=0))

    @cached_property
    def _spectrum(self) -> Spectrum:
        """The spectrum of the centred images."""
        values, vectors = np.linalg.eigh(self._gram)
        values = values.clip(0)
        return Spectrum(values, vectors[:, values > NEGLIGIBLE * values[-1]], self.seen)

    def _moved(self, rows: slice | Rows) -> Float:
        """Return (n, D) the features of some images in float64, minus the target's mean."""
        return np.asarray(self.features[rows].astype(np.float64) - self.origin)

    def _sums(self, rows: Rows) -> tuple[Float, float]:
        """Return the sum (D,) of `_moved`, and the sum of its squares."""
        total, squares = np.zeros(len(self.origin)), 0.0
        for part in blocks(len(rows)):
            x = self._moved(rows[part])
            total += x.sum(axis=0)
            squares += (x**2).sum()
        return total, squares

    def _distance(self, rows: Rows, values: Float) -> float:
        total, squares = self._sums(rows)
        count, mean = len(rows), total / len(rows)
        spread = (squares - count * (mean**2).sum()) / (count - 1)
        roots = np.sqrt(values.clip(0) / (count - 1)).sum()
        return float((mean**2).sum() + spread + self.trace - 2 * roots)


def _is_wide(y: Float) -> bool:
    return bool(len(y) <= y.shape[1])


def _smaller_gram(y: Float) -> Float:
    """Return the smaller of y yᵀ and yᵀ y, which have the same non-zero eigenvalues."""
    return np.asarray(y @ y.T if _is_wide(y) else y.T @ y)


def _singular_sums_without_each(spectrum: Spectrum, share: float) -> Float:
    """Return (N,) Σ √μ over the eigenvalues μ of yᵀy − share · y_i y_iᵀ, for each of the N rows.

    √λ = 1/π ∫ λ/(λ + t) t^(−½) dt turns the decrease of the sum into an integral over the derivative of log(1
    − share · q_i(t)) with q_i(t) = Σ_k w_ik/(λ_k + t) and w_ik = (y_i·v_k)². The integral uses the trapezoid
    rule in log t. With the leverage h_ik = w_ik/λ_k the determinant is 1 − share · Σ_k h_ik + share · Σ_k
    h_ik t/(λ_k + t). This form has no cancellation, even if an image has a direction of its own, as all
    images have if there are fewer images than features. Then the first two terms are 0.
    """
    values, count = spectrum.kept, len(spectrum.y)
    if not len(values):  # all images are equal
        return np.zeros(count)
    t, inverse = quadrature(values, TAIL)
    sums = np.empty(count)
    for rows in blocks(count):
        leverage = spectrum.leverage(rows)
        rest = 1 - share * leverage.sum(axis=1)
        rest[rest < ROUNDING] = 0
        determinants = rest[:, None] + share * t * (leverage @ inverse)
        falls = share * t * ((leverage * values) @ inverse**2) / determinants
        sums[rows] = np.sqrt(values).sum() - (falls * np.sqrt(t)).sum(axis=1) * STEP / np.pi
    return sums
