"""Nearest neighbours in feature space, in blocks, so that no matrix of all distances is ever held."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluate.features.extract import Array
from diffusion.protocol.scoring import SEED

BLOCK = 1024
COLUMNS = 16_384  # 67 MB of distances, which no number of images makes more


def some(features: Array, most: int) -> Array:
    """The features, or a random `most` of them in their order, with a fixed seed."""
    if len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(SEED).choice(len(features), most, replace=False))]


def radii(features: Tensor, neighbour: int) -> Tensor:
    """(N,) each row's distance to its k-th nearest other row; to the farthest where there are fewer."""
    rank = min(neighbour + 1, len(features))  # a row is nearest to itself
    least = features.new_full((len(features), rank), math.inf)
    for rows, _, block in _distances(features, features):
        least[rows] = torch.cat([least[rows], block], dim=1).topk(rank, largest=False).values
    return least[:, -1]


def within_reach(points: Tensor, reach: Tensor, others: Tensor, their_reach: Tensor) -> tuple[float, float]:
    """The share of the points within reach of any other, and of the others within reach of any point.

    `reach` (N,) and `their_reach` (M,) are each one's own.
    """
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    reached = torch.zeros(len(others), dtype=torch.bool, device=points.device)
    for rows, columns, block in _distances(points, others):
        inside[rows] |= (block <= their_reach[columns]).any(dim=1)
        reached[columns] |= (block <= reach[rows, None]).any(dim=0)
    return float(inside.double().mean()), float(reached.double().mean())


class Nearest(NamedTuple):
    """For each of N points its distance to the nearest of the others, and which one that is, both (N,)."""

    distances: Tensor
    rows: Tensor


def nearest(points: Tensor, others: Tensor) -> Nearest:
    """The nearest of the others to each point; they may lie on another device, and come block by block."""
    found = Nearest(
        points.new_full((len(points),), math.inf),
        torch.zeros(len(points), dtype=torch.int64, device=points.device),
    )
    for rows, columns, block in _distances(points, others):
        distances, places = block.min(dim=1)
        nearer = distances < found.distances[rows]
        found.distances[rows] = torch.where(nearer, distances, found.distances[rows])
        found.rows[rows] = torch.where(nearer, places + columns.start, found.rows[rows])
    return found


def _distances(points: Tensor, others: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and Euclidean distances of BLOCK × COLUMNS pairs at a time, until all were had."""
    for column in range(0, len(others), COLUMNS):
        columns = slice(column, column + COLUMNS)
        near = others[columns].to(points.device)
        for row in range(0, len(points), BLOCK):
            rows = slice(row, row + BLOCK)
            yield rows, columns, torch.cdist(points[rows], near)
