"""What nearest neighbours tell: precision and recall, density and coverage, whether data is repeated."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.scores.kernel_distance import Estimate
from diffusion.evaluate.scores.nearest_neighbours import blocks, nearest, radii, random_subset
from diffusion.protocol.metric_constants import NEIGHBOUR, WIDE_NEIGHBOUR


class Overlap(NamedTuple):
    """How samples and real images lie among each other.

    `precision` of the samples lie within the reach of a real image, `recall` of the real images within that
    of a sample: shares, 0 to 1 (Kynkäänniemi et al. 2019, 1904.06991, eq. 1 and 2). `density` is in how many
    real images' wide reach a sample lies, by the number of neighbours: about 1 of real images, more where
    samples crowd. `coverage` is the share of real images that have a sample in their wide reach (Naeem et al.
    2020, 2002.09797, eq. 4 and 5). An outlier among the samples, whose reach is large, moves these two less.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Manifold:
    """Where a set of images lies: `most` at most, each with its reaches.

    `reach` is the distance to the third next, `wide` that to the fifth.
    """

    def __init__(self, features: FeatureArray, most: int, device: torch.device) -> None:
        self.points: Tensor = torch.from_numpy(random_subset(features, most)).to(device)
        self.reach, self.wide = radii(self.points, NEIGHBOUR, WIDE_NEIGHBOUR)

    def __len__(self) -> int:
        return len(self.points)


def overlap(sample: Manifold, real: Manifold) -> Overlap:
    """Of the points of both; precision and recall as torch-fidelity's `prc_features_to_metric` has them."""
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
    """How much oftener than by chance a sample's nearest real image is one that the model was trained on.

    If a model has learnt the distribution and no image of it, its sample is as likely nearest to any image,
    seen or not: the chance is p = N_train/(N_train + N_test), whatever the sample's quality. Of the observed
    share f the mean is (f − p)/(1 − p): 0 as expected of unseen real images, 1 when every sample is nearest
    to a training image, below 0 when test images are nearer. `std` is how far from 0 chance alone takes it,
    had it been drawn anew which N_train of the N real images are for training. With c_j samples nearest to
    image j, M in all, the variance of f is p(1 − p)·N/(N − 1)·(Σ c_j² − M²/N)/M²: that of a sum over N_train
    values drawn without replacement (Cochran 1977, th. 2.2).
    """
    real = len(train) + len(test)
    chance = len(train) / real
    to_train, to_test = (nearest(sample.points, torch.from_numpy(split)) for split in (train, test))
    seen = to_train.distances < to_test.distances
    share = float(seen.double().mean())
    shared = torch.cat([to_train.rows[seen].bincount(), to_test.rows[~seen].bincount()]).double()
    uneven = max(0.0, float((shared**2).sum()) / len(sample) ** 2 - 1 / real)
    deviation = math.sqrt(chance * (1 - chance) * real / (real - 1) * uneven)
    return Estimate((share - chance) / (1 - chance), deviation / (1 - chance))
