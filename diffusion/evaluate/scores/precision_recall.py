"""What nearest neighbours in feature space tell: precision, recall, and whether a model repeats its data."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.evaluate.features.extract import Array
from diffusion.evaluate.scores.kernel import Estimate
from diffusion.evaluate.scores.neighbours import nearest, radii, some, within_reach
from diffusion.protocol.scoring import NEIGHBOUR


class PrecisionRecall(NamedTuple):
    """Shares, 0 to 1 (Kynkäänniemi et al. 2019, 1904.06991, eq. 1 and 2).

    `precision` of the samples lie among the real images: within the reach of one. `recall` of the real
    images lie among the samples.
    """

    precision: float
    recall: float


class Manifold:
    """Where a set of images lies: `most` at most, each with its reach, the distance to the third next."""

    def __init__(self, features: Array, most: int, device: torch.device) -> None:
        self.points: Tensor = torch.from_numpy(some(features, most)).to(device)
        self.reach = radii(self.points, NEIGHBOUR)

    def __len__(self) -> int:
        return len(self.points)


def precision_recall(sample: Manifold, reference: Manifold) -> PrecisionRecall:
    """As torch-fidelity's `prc_features_to_metric` where neither set was cut."""
    shares = within_reach(sample.points, sample.reach, reference.points, reference.reach)
    return PrecisionRecall(*shares)


def memorisation(sample: Manifold, train: Array, test: Array) -> Estimate:
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
