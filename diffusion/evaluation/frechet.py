"""The Fréchet distance of many samples to one reference, exact and fast where images are few.

Tr (Σ_a Σ_b)^½ is the sum of the singular values of X L/√(N−1), where X (N, D) are the sample's centred
features and L Lᵀ = Σ_b: eigenvalues of an N × N matrix where N < D, instead of torch-fidelity's D × D.
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluation.features import Array

Float = NDArray[np.float64]
Rows = slice | NDArray[np.integer[Any]]

NEGLIGIBLE = 1e-12  # of the largest eigenvalue: rounding, not variance
STEP = 0.5  # of the quadrature, in log t
TAIL = 28.0  # how far it goes beyond the eigenvalues, in log t: e^(−TAIL/2) of the whole is left out


class Target:
    """A reference's Gaussian: `mean` (D,), `trace` of its covariance Σ, `root` (D, r) with root·rootᵀ = Σ."""

    def __init__(self, features: Array) -> None:
        x = features.astype(np.float64)
        self.mean: Float = x.mean(axis=0)
        x -= self.mean
        count, dimension = x.shape
        self.trace = float((x**2).sum() / (count - 1))
        self.root: Float
        if count <= 2 * dimension:
            self.root = x.T / np.sqrt(count - 1)
        else:
            values, vectors = np.linalg.eigh(x.T @ x / (count - 1))
            kept = values > NEGLIGIBLE * values[-1]
            self.root = vectors[:, kept] * np.sqrt(values[kept])


class Projected:
    """A sample's features (N, D) before a target, from which the distances of its subsets come cheaply."""

    def __init__(self, features: Array, target: Target) -> None:
        self.features: Float = features.astype(np.float64) - target.mean
        self.seen: Float = self.features @ target.root
        self.trace = target.trace

    def __len__(self) -> int:
        return len(self.features)

    def distance(self, rows: Rows = slice(None)) -> float:
        """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2(Σ_aΣ_b)^½) (1706.08500, eq. 6) of two rows or more."""
        x, y = self.features[rows], self.seen[rows]
        mean = x.mean(axis=0)
        spread = ((x**2).sum() - len(x) * (mean**2).sum()) / (len(x) - 1)
        y = y - y.mean(axis=0)
        squares = np.linalg.eigvalsh(_smaller_gram(y) / (len(x) - 1))
        return float((mean**2).sum() + spread + self.trace - 2 * np.sqrt(squares.clip(0)).sum())

    @cached_property
    def _centred(self) -> tuple[Float, Float]:
        return self.features - self.features.mean(axis=0), self.seen - self.seen.mean(axis=0)

    def leave_one_out(self) -> Float:
        """(N,) the distance of the sample without each of its N ≥ 3 images, exact for all at once."""
        x, y = self._centred
        count = len(x)
        share = count / (count - 1)  # without image i the scatter is less by share · x_i x_iᵀ
        norms = (x**2).sum(axis=1)
        traces = (norms.sum() - share * norms) / (count - 2)
        means = self.features.mean(axis=0) - x / (count - 1)
        roots = _singular_sums_without_each(y, share) / np.sqrt(count - 2)
        return np.asarray((means**2).sum(axis=1) + traces + self.trace - 2 * roots)


def _smaller_gram(y: Float) -> Float:
    """y yᵀ or yᵀ y, whichever is smaller: they share their eigenvalues but for zeros."""
    return np.asarray(y @ y.T if len(y) <= y.shape[1] else y.T @ y)


def _singular_sums_without_each(y: Float, share: float) -> Float:
    """(N,) Σ √μ over the eigenvalues μ of yᵀy − share · y_i y_iᵀ, for each row i of the centred (N, r) y.

    √λ = 1/π ∫ λ/(λ + t) t^(−½) dt turns the sum's fall into an integral over the derivative of the
    determinant's, log(1 − share · q_i(t)) with q_i(t) = Σ_k w_ik/(λ_k + t), where w_ik = (y_i·v_k)² for the
    eigenvectors v. It is taken by the trapezoid rule in log t.
    """
    wide = len(y) <= y.shape[1]
    values, vectors = np.linalg.eigh(_smaller_gram(y))
    kept = values > NEGLIGIBLE * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    if not len(values):  # all images are equal
        return np.zeros(len(y))
    weights = vectors**2 * values if wide else (y @ vectors) ** 2
    t = np.exp(np.arange(np.log(values[0]) - TAIL, np.log(values[-1]) + TAIL, STEP))
    inverse = 1 / (values[:, None] + t)
    q, slope = weights @ inverse, weights @ inverse**2
    falls = t * share * slope / np.maximum(1 - share * q, np.finfo(np.float64).eps)
    return np.asarray(np.sqrt(values).sum() - (falls * np.sqrt(t)).sum(axis=1) * STEP / np.pi)
