"""The real-against-real floor, and the Fréchet distance for N → ∞.

A Fréchet distance is biased upwards by about a constant over N (Chong & Forsyth 2020, 1911.07023), so that
real images, too, have a positive distance at small N. The excess is a sample's distance minus that of as many
held-out real images. A line fitted in 1/N extrapolates the distance to N → ∞.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.jackknife import image_errors
from diffusion.protocol.card import SEED

Order = NDArray[np.int64]

MAX_SUBSETS = 4  # disjoint subsets averaged for a measured floor
FIT_POINTS = 5  # subset sizes of the line fit, evenly spaced in 1/N between half of the images and all


class Line(NamedTuple):
    """A Fréchet distance as limit + slope/N."""

    limit: float
    slope: float

    def at(self, count: int) -> float:
        """Return the distance of `count` images, at least 0."""
        return max(0.0, self.limit + self.slope / count)


class Floor(NamedTuple):
    """The Fréchet distance of `num_images` held-out real images to the reference.

    `extrapolated` marks a value from a line fit, if there are fewer held-out images.
    """

    num_images: int
    distance: float
    extrapolated: bool


def floor_at(num_images: int, heldout: FeatureArray, target: Target) -> Floor:
    """Return the floor at N ≥ 2 images, extrapolated if there are fewer than N held-out images."""
    if num_images > len(heldout):
        return Floor(num_images, fit_line(ProjectedSample(heldout, target)).at(num_images), extrapolated=True)
    needed = shuffled(len(heldout))[: MAX_SUBSETS * num_images]
    distance = _mean_distance(num_images, ProjectedSample(heldout[needed], target), np.arange(len(needed)))
    return Floor(num_images, distance, extrapolated=False)


def floor_error(num_images: int, heldout: FeatureArray, target: Target) -> float | None:
    """Return the standard deviation of a measured floor at N ≥ 3 images, over other held-out images.

    None for an extrapolated floor, since the error of its line is not a sampling error.
    """
    subsets = min(MAX_SUBSETS, len(heldout) // num_images)
    if not subsets:
        return None
    first = ProjectedSample(heldout[shuffled(len(heldout))[:num_images]], target)
    errors = image_errors(first.leave_one_out(), first.interactions())
    return float(np.linalg.norm(errors)) / math.sqrt(subsets)


def fit_line(projected: ProjectedSample) -> Line:
    """Fit a line to the distances of random subsets, from half of the images to all."""
    count = len(projected)
    order = shuffled(count)
    inverse = np.linspace(1 / count, 2 / count, FIT_POINTS)
    sizes = sorted({max(2, round(1 / value)) for value in inverse})
    distances = [_mean_distance(size, projected, order) for size in sizes]
    if len(sizes) == 1:
        return Line(distances[0], 0.0)
    slope, limit = np.polyfit([1 / size for size in sizes], distances, 1)
    return Line(float(limit), float(slope))


def shuffled(count: int) -> Order:
    """Return a fixed permutation of `count` images, for drawing subsets."""
    return np.random.default_rng(SEED).permutation(count)


def _mean_distance(size: int, projected: ProjectedSample, order: Order) -> float:
    """Return the mean over disjoint subsets of `size`, at most MAX_SUBSETS."""
    if size == len(order):
        return projected.distance
    subsets = min(MAX_SUBSETS, len(order) // size)
    parts = (order[i * size : (i + 1) * size] for i in range(subsets))
    return float(np.mean([projected.distance_of(part) for part in parts]))
