"""Nearest neighbours in feature space, in blocks, so that the full distance matrix is never in memory."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.protocol.card import SEED

BLOCK = 1024
COLUMNS = 16_384  # 67 MB of distances per block


def random_subset(features: FeatureArray, most: int) -> FeatureArray:
    """Return the features, or `most` random rows in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]


def radii(features: Tensor, *neighbours: int) -> Tensor:
    """Return (K, N) each row's distance to its k-th nearest other row, for K values of k.

    With fewer rows it is the distance to the farthest one.
    """
    ranks = [min(neighbour, len(features) - 1) for neighbour in neighbours]  # each row is its own nearest
    most = max(ranks) + 1
    least = features.new_full((len(features), most), math.inf)
    for rows, _, block in blocks(features, features):
        near = block.topk(min(most, block.shape[1]), largest=False).values
        least[rows] = torch.cat([least[rows], near], dim=1).topk(most, largest=False).values
    return least.sort(dim=1).values[:, ranks].T


class Nearest(NamedTuple):
    """The distance of N points to the nearest of the others, and its row, both (N,)."""

    distances: Tensor
    rows: Tensor


def nearest(points: Tensor, others: Tensor) -> Nearest:
    """Return the nearest of the others for each point. `others` may be on another device."""
    found = Nearest(
        points.new_full((len(points),), math.inf),
        torch.zeros(len(points), dtype=torch.int64, device=points.device),
    )
    for rows, columns, block in blocks(points, others):
        distances, places = block.min(dim=1)
        nearer = distances < found.distances[rows]
        found.distances[rows] = torch.where(nearer, distances, found.distances[rows])
        found.rows[rows] = torch.where(nearer, places + columns.start, found.rows[rows])
    return found


def blocks(points: Tensor, others: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and Euclidean distances of BLOCK × COLUMNS pairs at a time."""
    for column in range(0, len(others), COLUMNS):
        columns = slice(column, column + COLUMNS)
        near = others[columns].to(points.device)
        for row in range(0, len(points), BLOCK):
            rows = slice(row, row + BLOCK)
            yield rows, columns, torch.cdist(points[rows], near)
