"""Feature likelihood divergence (FLD; Jiralerspong et al. 2023, 2302.04440), which detects copies.

A mixture has an isotropic Gaussian at every sample. Their widths are fitted to the training images, and the
mixture then scores the test images. A sample that copies a training image gets a width near zero, so that its
Gaussian explains no test image: copies score high, although their Fréchet distance is low.

While the widths are fitted, a background explains the training images that have no sample near them.
Without it copies become wide, too. It is a Gaussian at the mean that weighs as much as the mixture, with
distances reduced to 0.9, as in the authors' code. They fit by Adam, and this module by expectation
maximisation, so that values compare with each other only.
"""

import math

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.scores.moments import random_subset
from diffusion.protocol.card import SEED, Limits

SCALE = 100.0  # of the divergence in nats per feature, as published
MAX_ITERATIONS = 50
BACKGROUND = 0.9**2  # factor of the background's squared distances
TOLERANCE = 1e-5  # nats per feature, of an iteration
MIN_VARIANCE = 1e-4  # of features with variance 1: copies have none
MAX_FITTED = 50_000  # training images; with 10,000 samples their distances take 2 GB
BLOCK = 1024  # points at a time


class FeatureLikelihood:
    """Divergences from one data set, of at most `limits.samples` samples and `limits.real` test images.

    It takes up to MAX_FITTED training images, since a copy of an image that is left out is not detected, and
    at most half as many samples: the baseline has as many training images, and is fitted to the others.
    """

    def __init__(self, train: FeatureArray, test: FeatureArray, limits: Limits, device: torch.device) -> None:
        fitted, scored = (
            torch.from_numpy(random_subset(split, size)).to(device)
            for split, size in ((train, MAX_FITTED), (test, limits.real))
        )
        deviation, self.mean = torch.std_mean(scored, dim=0)
        self.deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self.most, self.device = min(limits.samples, len(fitted) // 2), device
        self.train, self.test = self._normalized(fitted), self._normalized(scored)
        self._baselines: dict[int, float] = {}

    def __call__(self, sample: FeatureArray) -> float:
        """Return the divergence of a sample: about 0 for unseen real images, higher is worse."""
        points = self._normalized(torch.from_numpy(random_subset(sample, self.most)).to(self.device))
        return SCALE * (self._surprise(points, self.train) - self._baseline(len(points)))

    def _baseline(self, count: int) -> float:
        """Return the surprise at the test images of as many training images."""
        if count not in self._baselines:
            order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(self.train)))
            self._baselines[count] = self._surprise(self.train[order[:count]], self.train[order[count:]])
        return self._baselines[count]

    def _surprise(self, centers: Tensor, fitted_to: Tensor) -> float:
        """Return −log p of the test images by a mixture at `centers`, as a mean in nats per feature."""
        far = BACKGROUND * squared_distances(fitted_to, fitted_to.mean(dim=0, keepdim=True))
        variances = fit_variances(squared_distances(fitted_to, centers), far, centers.shape[1])
        squares = squared_distances(self.test, centers)
        return -float(log_likelihood(squares, variances, centers.shape[1]).double().mean())

    def _normalized(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Return the squared Euclidean distances (N, M)."""
    return torch.cdist(points, centers).square_()


def fit_variances(squares: Tensor, far: Tensor, dimension: int) -> Tensor:
    """Return the variances (M,) of the mixture's Gaussians that maximise the likelihood of the points.

    `squares` (N, M) are the points' squared distances to the centers, `far` (N, 1) those to the background.
    An iteration of expectation maximisation sets a variance to the mean square, weighted by the Gaussian's
    responsibilities for the points. It starts at the nearest point.
    """
    nearest = squares.amin(dim=0) / dimension
    variances = torch.cat([nearest, far.mean()[None] / dimension]).clamp_min(MIN_VARIANCE)
    previous = -math.inf
    prior = torch.full_like(variances, -math.log(len(nearest)))
    prior[-1] = 0.0  # the background weighs as much as all others
    for _ in range(MAX_ITERATIONS):
        weight, spread = torch.zeros_like(variances), torch.zeros_like(variances)
        total = 0.0
        for near, background in zip(torch.split(squares, BLOCK), torch.split(far, BLOCK), strict=True):
            block = torch.cat([near, background], dim=1)
            joint = _log_density(block, variances, dimension) + prior
            likelihood = joint.logsumexp(dim=1)
            shares = joint.sub_(likelihood[:, None]).exp_()
            weight += shares.sum(dim=0)
            spread += block.mul_(shares).sum(dim=0)
            total += float(likelihood.double().sum())
        fitted = (spread / (dimension * weight)).clamp_min(MIN_VARIANCE)
        variances = torch.where(weight > 0, fitted, variances)  # of a center that no point needs: unchanged
        level = total / (len(squares) * dimension)
        if level - previous < TOLERANCE:
            break
        previous = level
    return variances[:-1]


def log_likelihood(squares: Tensor, variances: Tensor, dimension: int) -> Tensor:
    """Return log p of each point (N,) in nats per feature, by Gaussians of equal weight."""
    blocks = (
        _log_density(block, variances, dimension).logsumexp(dim=1) for block in torch.split(squares, BLOCK)
    )
    return (torch.cat([*blocks]) - math.log(len(variances))) / dimension


def _log_density(squares: Tensor, variances: Tensor, dimension: int) -> Tensor:
    """Return the log density of each point by each Gaussian, (N, M)."""
    return squares * (-0.5 / variances) - dimension / 2 * torch.log(2 * math.pi * variances)
