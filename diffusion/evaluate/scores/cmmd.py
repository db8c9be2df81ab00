"""CMMD (Jayasumana et al. 2024, 2401.09603): the squared MMD of CLIP embeddings with a Gaussian kernel.

Unlike a Fréchet distance it does not assume Gaussian features. As published: k(a, b) = exp(−‖a − b‖²/2σ²)
with σ = 10 for embeddings of length 1, means over all pairs (a row with itself included), times 1,000.
"""

from functools import cached_property

import torch
from torch import Tensor

from diffusion.evaluate.features.extract import FeatureArray

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 2048


class Embeddings:
    """The features of a set. Its kernel with itself is computed once."""

    def __init__(self, features: FeatureArray, device: torch.device) -> None:
        self.points = torch.from_numpy(features).to(device)

    @cached_property
    def own(self) -> float:
        """E k(x, x') − 1 over all pairs."""
        return mean_kernel(self.points, self.points)


def cmmd(sample: Embeddings, real: Embeddings) -> float:
    """Return 1,000·(E k(x, x') + E k(y, y') − 2 E k(x, y)). It is at least 0 up to rounding."""
    return SCALE * (sample.own + real.own - 2 * mean_kernel(sample.points, real.points))


def mean_kernel(a: Tensor, b: Tensor) -> float:
    """Return the mean of k − 1 over all pairs of rows, in blocks.

    σ is so large that k is near 1 everywhere; k − 1 keeps the significant digits.
    """
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for row in range(0, len(a), BLOCK):
        for column in range(0, len(b), BLOCK):
            squares = torch.cdist(a[row : row + BLOCK], b[column : column + BLOCK]).square()
            total += torch.expm1(squares / (-2 * SIGMA**2)).sum(dtype=torch.float64)
    return float(total) / (len(a) * len(b))
