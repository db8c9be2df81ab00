"""Scores by Fréchet distances: floor, limit N → ∞, classes, and the distance to published statistics.

A Fréchet distance is biased upwards by about a constant over N (Chong & Forsyth 2020, 1911.07023). The excess
is a sample's distance minus that of as many held-out real images, the floor.
"""

import math
import warnings
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluate.features.extractors import FeatureArray
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.jackknife import grouped, image_errors
from diffusion.evaluate.scores.moments import Float, Statistics, frechet_distance, statistics
from diffusion.protocol.card import SEED
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.system.errors import DiffctlWarning

MAX_SUBSETS = 4  # disjoint subsets averaged for a measured floor
FIT_POINTS = 5  # subset sizes of the line fit, evenly spaced in 1/N between half of the images and all
HEAVY_SHARE = 0.25  # of the variance by one image: real features stay below 0.15, also of distorted images
MIN_FOR_TAILS = 200  # images: of fewer, one may have a large share by chance
MIN_CLASS_IMAGES = 2  # for samples and for real images
MAX_TARGETS = 128  # cached classes; each takes twice the memory of its features


def fit_line(projected: ProjectedSample) -> tuple[float, float]:
    """Fit limit + slope/N to the distances of random subsets, from half of the images to all; return both."""
    count = len(projected)
    sizes = sorted({max(2, round(1 / value)) for value in np.linspace(1 / count, 2 / count, FIT_POINTS)})
    distances = [_mean_distance(size, projected, shuffled(count)) for size in sizes]
    if len(sizes) == 1:
        return distances[0], 0.0
    slope, limit = np.polyfit([1 / size for size in sizes], distances, 1)
    return float(limit), float(slope)


def shuffled(count: int) -> NDArray[np.int64]:
    """Return a fixed permutation of `count` images, for drawing subsets."""
    return np.random.default_rng(SEED).permutation(count)


def _mean_distance(size: int, projected: ProjectedSample, order: NDArray[np.int64]) -> float:
    """Return the mean over disjoint subsets of `size`, at most MAX_SUBSETS."""
    if size == len(order):
        return projected.distance
    subsets = min(MAX_SUBSETS, len(order) // size)
    parts = (order[i * size : (i + 1) * size] for i in range(subsets))
    return float(np.mean([projected.distance_of(part) for part in parts]))


def floor_at(num_images: int, heldout: FeatureArray, target: Target) -> float:
    """Return the distance of N ≥ 2 held-out real images, extrapolated by a line fit if there are fewer."""
    if num_images > len(heldout):
        limit, slope = fit_line(ProjectedSample(heldout, target))
        return max(0.0, limit + slope / num_images)
    needed = shuffled(len(heldout))[: MAX_SUBSETS * num_images]
    return _mean_distance(num_images, ProjectedSample(heldout[needed], target), np.arange(len(needed)))


def floor_error(num_images: int, heldout: FeatureArray, target: Target) -> float | None:
    """Return the standard deviation of a floor of N ≥ 3 images; None if it is extrapolated."""
    if num_images > len(heldout):
        return None
    errors = _distance_errors(ProjectedSample(heldout[shuffled(len(heldout))[:num_images]], target))
    return float(np.linalg.norm(errors)) / math.sqrt(min(MAX_SUBSETS, len(heldout) // num_images))


def limit_and_errors(
    features: FeatureArray, target: Target, has_errors: bool = True
) -> tuple[float, Float | None]:
    """Return the distance for N → ∞, and the errors (GROUPS,) of the distance at N ≥ 3 if required.

    Warn of features with heavy tails: their intervals are too narrow. For Student's t with 3 degrees of
    freedom, 95% intervals of 200 images contain the truth in 38 to 71% of draws.
    """
    projected = ProjectedSample(features, target)
    limit, _ = fit_line(projected)
    if not has_errors:
        return limit, None
    errors = _distance_errors(projected)
    if len(errors) >= MIN_FOR_TAILS and (errors**2).max() > HEAVY_SHARE * (errors**2).sum():
        found = (
            f"one of {len(errors):,} images causes over {HEAVY_SHARE:.0%} of a Fréchet distance's variance"
        )
        why = "features have heavy tails, and confidence intervals are too narrow; score more images"
        warnings.warn(f"{found}: {why}", DiffctlWarning, stacklevel=2)
    return limit, grouped(errors)


def _distance_errors(projected: ProjectedSample) -> Float:
    """Return (N,) each image's part of the distance's error; the squares sum to its variance."""
    return image_errors(projected.leave_one_out(), projected.interactions())


class PublishedStatistics(Target):
    """The published Gaussian of an extractor's features, with the `facts` of its card."""

    def __init__(self, spec: ExtractorSpec, gaussian: Statistics, root: Float, facts: dict[str, str]) -> None:
        self.spec, self.gaussian, self.facts = spec, gaussian, facts
        self.mean, self.root = np.asarray(gaussian.mu, np.float64), root
        self.trace = float(gaussian.sigma.trace())

    def distance(self, features: FeatureArray) -> float:
        """Return the distance of features (N, D) as torch-fidelity computes it, with a float64 mean."""
        mean = features.mean(axis=0, dtype=np.float64)
        return frechet_distance(statistics(features)._replace(mu=mean), self.gaussian)


class RealClasses:
    """The Gaussians and floors of a reference's classes, computed once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._target = lru_cache(MAX_TARGETS)(self._make_target)
        self._floor = cache(self._make_floor)

    def scores(self, sample: FeatureArray, label: int, metric: str) -> dict[str, float] | None:
        """Return number and distance of a class's samples; None for too few images.

        With as many held-out images of the class, return floor and excess too: an extrapolation from a
        class's few images is several times off.
        """
        target = self._target(label)
        if len(sample) < MIN_CLASS_IMAGES or target is None:
            return None
        distance, floor = ProjectedSample(sample, target).distance, self._floor(label, len(sample))
        values = {"num_images": len(sample), metric: distance}
        return values if floor is None else values | {"floor": floor, "excess": distance - floor}

    def _make_target(self, label: int) -> Target | None:
        real = self.reference.features[self.reference.labels == label]
        return Target(real) if len(real) >= MIN_CLASS_IMAGES else None

    def _make_floor(self, label: int, num_images: int) -> float | None:
        heldout, labels, target = self.reference.heldout, self.reference.heldout_labels, self._target(label)
        if heldout is None or labels is None or target is None:
            return None
        unseen = heldout.features[labels == label]
        return floor_at(num_images, unseen, target) if len(unseen) >= num_images else None
