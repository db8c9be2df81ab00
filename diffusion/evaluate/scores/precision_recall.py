"""Scores from nearest neighbours, in blocks: precision, recall, density, coverage, memorisation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.scores.moments import Estimate, random_subset
from diffusion.protocol.card import NEIGHBOUR, WIDE_NEIGHBOUR

BLOCK = 1024
COLUMNS = 16_384  # 67 MB of distances per block


class Overlap(NamedTuple):
    """How samples and real images overlap.

    `precision` is the fraction of samples within the radius of a real image, `recall` the fraction of real
    images within that of a sample (Kynkäänniemi et al. 2019, 1904.06991, eq. 1 and 2). `density` counts the
    real images with a given sample in their wide radius, on average over the samples, divided by the number
    of neighbours: about 1 for real images, more where samples concentrate. `coverage` is the fraction of real
    images with a sample in their wide radius (Naeem et al. 2020, 2002.09797, eq. 4 and 5). An outlier among
    the samples has a large radius; it affects these two less.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Manifold:
    """At most `most` images of a set with their radii: `reach` to the 3rd neighbour, `wide` to the 5th."""

    def __init__(self, features: FeatureArray, most: int, device: torch.device) -> None:
        self.points: Tensor = torch.from_numpy(random_subset(features, most)).to(device)
        self.reach, self.wide = radii(self.points, NEIGHBOUR, WIDE_NEIGHBOUR)

    def __len__(self) -> int:
        return len(self.points)


def overlap(sample: Manifold, real: Manifold) -> Overlap:
    """Return the overlap; precision and recall equal torch-fidelity's `prc_features_to_metric`."""
    device = sample.points.device
    inside = torch.zeros(len(sample), dtype=torch.bool, device=device)
    reached, covered = torch.zeros(2, len(real), dtype=torch.bool, device=device)
    crowd = torch.zeros((), dtype=torch.int64, device=device)
    for rows, columns, block in blocks(sample.points, real.points):
        inside[rows] |= (block <= real.reach[columns]).any(dim=1)
        reached[columns] |= (block <= sample.reach[rows, None]).any(dim=0)
        near = block <= real.wide[columns]
        covered[columns] |= near.any(dim=0)
        crowd += near.sum()
    precision, recall, coverage = (float(share.double().mean()) for share in (inside, reached, covered))
    return Overlap(precision, recall, float(crowd) / (WIDE_NEIGHBOUR * len(sample)), coverage)


def memorisation(sample: Manifold, train: FeatureArray, test: FeatureArray) -> Estimate:
    """Return by how much the share of samples nearest to a training image exceeds chance.

    For a model that generalises, the chance is p = N_train/(N_train + N_test), whatever the sample's quality.
    With the observed fraction f, the mean is (f − p)/(1 − p): 0 as for unseen real images, 1 if every nearest
    image is a training image, below 0 if test images are nearer. `std` is the standard deviation if the
    N_train of N real images were drawn again. With c_j samples nearest to image j, M in total, the variance
    of f is p(1 − p)·N/(N − 1)·(Σ c_j² − M²/N)/M²: that of a sum of N_train values drawn without replacement
    (Cochran 1977, th. 2.2).
    """
    real = len(train) + len(test)
    chance = len(train) / real
    in_train, in_test = (nearest(sample.points, torch.from_numpy(split)) for split in (train, test))
    seen = in_train[0] < in_test[0]
    share = float(seen.double().mean())
    shared = torch.cat([in_train[1][seen].bincount(), in_test[1][~seen].bincount()]).double()
    uneven = max(0.0, float((shared**2).sum()) / len(sample) ** 2 - 1 / real)
    deviation = math.sqrt(chance * (1 - chance) * real / (real - 1) * uneven)
    return Estimate((share - chance) / (1 - chance), deviation / (1 - chance))


def radii(features: Tensor, *neighbours: int) -> Tensor:
    """Return (K, N) each row's distance to its k-th nearest other row, or the farthest, for K values of k."""
    ranks = [min(neighbour, len(features) - 1) for neighbour in neighbours]  # each row is its own nearest
    most = max(ranks) + 1
    least = features.new_full((len(features), most), math.inf)
    for rows, _, block in blocks(features, features):
        near = block.topk(min(most, block.shape[1]), largest=False).values
        least[rows] = torch.cat([least[rows], near], dim=1).topk(most, largest=False).values
    return least.sort(dim=1).values[:, ranks].T


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's distance to the nearest of the others, on any device, and its row, both (N,)."""
    least = points.new_full((len(points),), math.inf)
    found = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for rows, columns, block in blocks(points, others):
        distances, places = block.min(dim=1)
        nearer = distances < least[rows]
        least[rows] = torch.where(nearer, distances, least[rows])
        found[rows] = torch.where(nearer, places + columns.start, found[rows])
    return least, found


def blocks(points: Tensor, others: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and Euclidean distances of BLOCK × COLUMNS pairs at a time."""
    for column in range(0, len(others), COLUMNS):
        columns = slice(column, column + COLUMNS)
        near = others[columns].to(points.device)
        for row in range(0, len(points), BLOCK):
            rows = slice(row, row + BLOCK)
            yield rows, columns, torch.cdist(points[rows], near)
