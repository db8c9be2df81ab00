"""Squared MMDs of features: KID with a cubic kernel, and CMMD with a Gaussian one.

KID (Bińkowski et al. 2018, 1801.01401) is unbiased at every N. Values equal those of torch-fidelity's
`kid_features_to_metric`, subset by subset and in float32.

CMMD (Jayasumana et al. 2024, 2401.09603) does not assume Gaussian features. As published: k(a, b) =
exp(−‖a − b‖²/2σ²) with σ = 10 for embeddings of length 1, means over all pairs (a row with itself included),
times 1,000.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.scores.jackknife import Interactions
from diffusion.evaluate.scores.moments import Float, Rows, random_subset
from diffusion.protocol.card import SEED, SUBSET_SIZE, SUBSETS

COLUMNS = 5000  # images compared with each image for leave-one-out
PAIRED = 1000  # images used for the interactions of pairs
BLOCK = 1024
WHOLE = SUBSETS * SUBSET_SIZE**2  # pairs of a kernel held in full, 100 MB
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
CMMD_BLOCK = 2048


def subsets(count: int, reference_count: int, size: int) -> Rows:
    """Return the rows of the subsets of `size` that torch-fidelity draws of two sets, (2, SUBSETS, size)."""
    draw = np.random.RandomState(SEED)
    drawn = np.empty((2, SUBSETS, size), np.int64)
    for pair in zip(*drawn, strict=True):
        for rows, total in zip(pair, (count, reference_count), strict=True):
            rows[:] = draw.choice(total, len(rows), replace=False)  # allocates a full permutation
    return drawn


class Kernel:
    """(a·b/D + 1)³ between rows of two sets, computed in full if both are small, else on demand."""

    def __init__(self, a: FeatureArray, b: FeatureArray) -> None:
        self.a, self.b = a, b
        self.whole = _polynomial(a, b) if len(a) * len(b) <= WHOLE else None

    def __call__(self, rows: Rows, columns: Rows) -> FeatureArray:
        """Return the kernel between some rows of each set."""
        if self.whole is None:
            return _polynomial(self.a[rows], self.b[columns])
        return np.asarray(self.whole[rows].take(columns, axis=1))

    def row_means(self) -> Float:
        """Return (N,) the mean of each row, over at most 5,000 random columns."""
        if self.whole is not None and len(self.b) <= COLUMNS:
            return np.asarray(self.whole.mean(axis=1, dtype=np.float64))
        columns = random_subset(self.b, COLUMNS)
        blocks = (self.a[start : start + BLOCK] for start in range(0, len(self.a), BLOCK))
        return np.concatenate([_polynomial(rows, columns).mean(axis=1, dtype=np.float64) for rows in blocks])


def own_sums(kernel: Kernel, rows: Rows) -> NDArray[np.float32]:
    """Return (SUBSETS,) the sums over all pairs of different images in each subset."""
    parts = (kernel(subset, subset) for subset in rows)
    return np.array([(part.sum(axis=1) - np.diagonal(part)).sum() for part in parts], dtype=np.float32)


def kernel_distance(own: Kernel, cross: Kernel, drawn: Rows, reference_sums: NDArray[np.float32]) -> Float:
    """Return the squared MMD of each subset in `drawn`, (SUBSETS,); near 0 it may be slightly negative.

    `own` is a sample's kernel with itself, `cross` that with its reference. `reference_sums` is `own_sums` of
    the reference, equal for all samples of one size.
    """
    size = drawn.shape[2]
    between = np.array([cross(*rows).sum(axis=0).sum() for rows in zip(*drawn, strict=True)], np.float32)
    within = own_sums(own, drawn[0]) + reference_sums
    values = within / np.float32(size * (size - 1)) - 2 * between / np.float32(size * size)
    return np.asarray(values.astype(np.float64))


def leave_one_out(own: Kernel, cross: Kernel) -> Float:
    """Return (N,) the MMD² without each of N ≥ 3 images (to at most 5,000 others), up to a constant."""
    features = own.a
    count = len(features)
    pairs, between = own.row_means() * count, cross.row_means()
    diagonal = (np.einsum("nd,nd->n", features, features, dtype=np.float64) / features.shape[1] + 1) ** 3
    pairs -= diagonal
    within = (pairs.sum() - 2 * pairs) / ((count - 1) * (count - 2))
    return np.asarray(within - 2 * (between.sum() - between) / (count - 1))


def interactions(own: Kernel) -> Interactions:
    """Return the interactions of pairs in the variance of the squared MMD: 2 E h²/(N(N − 1)).

    h is the kernel without each image's effect on the mean (Serfling 1980, sec. 5.2).
    """
    count = len(own.a)
    rows = np.arange(min(count, PAIRED))
    paired = len(rows)
    if paired < 4:
        return Interactions(0.0, 0.0)
    h = own(rows, rows).astype(np.float64)
    np.fill_diagonal(h, 0)
    row = h.sum(axis=1) / (paired - 2)  # least squares over the pairs of different rows
    h -= row + row[:, None] - h.sum() / ((paired - 1) * (paired - 2))
    np.fill_diagonal(h, 0)
    variance = 2 * (h**2).sum() / (paired * (paired - 3)) / (count * (count - 1))
    return Interactions(variance, variance)


def _polynomial(a: FeatureArray, b: FeatureArray) -> FeatureArray:
    """Return the kernel between all rows, in float32 like torch-fidelity."""
    return np.asarray((np.matmul(a, b.T) * (1.0 / a.shape[1]) + 1) ** 3)


def cmmd(sample: Tensor, real: Tensor, real_kernel: float) -> float:
    """Return 1,000·(E k(x, x') + E k(y, y') − 2 E k(x, y)) of embeddings x (N, D) and y (M, D).

    `real_kernel` is the `mean_kernel` of y with itself. The distance is at least 0 up to rounding.
    """
    return CMMD_SCALE * (mean_kernel(sample, sample) + real_kernel - 2 * mean_kernel(sample, real))


def mean_kernel(a: Tensor, b: Tensor) -> float:
    """Return the mean of k − 1, which is near 0, over all pairs of rows, in blocks."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for row in range(0, len(a), CMMD_BLOCK):
        for column in range(0, len(b), CMMD_BLOCK):
            squares = torch.cdist(a[row : row + CMMD_BLOCK], b[column : column + CMMD_BLOCK]).square()
            total += torch.expm1(squares / (-2 * CMMD_SIGMA**2)).sum(dtype=torch.float64)
    return float(total) / (len(a) * len(b))
