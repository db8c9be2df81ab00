"""Nearest neighbours in feature space, in blocks, so that no matrix of all distances is ever held."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluation.features import Array

BLOCK = 1024
SEED = 2020


def some(features: Array, most: int) -> Array:
    """The features, or a random `most` of them in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]


def radii(features: Tensor, neighbour: int) -> Tensor:
    """(N,) each row's distance to its k-th nearest other row; to the farthest where there are fewer."""
    rank = min(neighbour + 1, len(features))  # a row is nearest to itself
    return torch.cat([block.kthvalue(rank, dim=1).values for block in _distances(features, features)])


def within_reach(points: Tensor, reach: Tensor, others: Tensor, their_reach: Tensor) -> tuple[float, float]:
    """The share of the points within reach of any other, and of the others within reach of any point.

    `reach` (N,) and `their_reach` (M,) are each one's own.
    """
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    reached = torch.zeros(len(others), dtype=torch.bool, device=points.device)
    for start, block in zip(range(0, len(points), BLOCK), _distances(points, others), strict=True):
        rows = slice(start, start + BLOCK)
        inside[rows] = (block <= their_reach).any(dim=1)
        reached |= (block <= reach[rows, None]).any(dim=0)
    return float(inside.double().mean()), float(reached.double().mean())


class Nearest(NamedTuple):
    """For each of N points its distance to the nearest of the others, and which one that is, both (N,)."""

    distances: Tensor
    rows: Tensor


def nearest(points: Tensor, others: Tensor) -> Nearest:
    """The nearest of the others to each point."""
    found = [block.min(dim=1) for block in _distances(points, others)]
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Euclidean distances (BLOCK, M), block by block."""
    for start in range(0, len(points), BLOCK):
        yield torch.cdist(points[start : start + BLOCK], others)
