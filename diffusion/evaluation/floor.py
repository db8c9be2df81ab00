"""The real-against-real floor: what held-out real images score against the reference at N images.

A Fréchet distance is biased upwards by about a constant over N (Chong & Forsyth 2020, 1911.07023), so even
real images are far from zero at small N. What a sample scores above the floor at the same N is its excess.
"""

from typing import NamedTuple

import numpy as np

from diffusion.evaluation.features import Array
from diffusion.evaluation.scores import (
    SEED,
    Estimate,
    Statistics,
    frechet_distance,
    kernel_distance,
    statistics,
)

MAX_SUBSETS = 4  # disjoint held-out subsets that a measured floor is the mean of
FIT_POINTS = 5  # subset sizes of the line fit, evenly spaced in 1/N between half of the images and all


class Floor(NamedTuple):
    """Held-out real images at `num_images`: Fréchet and kernel distance to the reference.

    `extrapolated` marks a Fréchet distance that was read off a line fit, since there are not as many
    held-out images; the kernel distance is unbiased and then that of all of them.
    """

    num_images: int
    distance: float
    kernel_distance: Estimate
    extrapolated: bool


def floor_at(num_images: int, heldout: Array, reference: Array, reference_statistics: Statistics) -> Floor:
    """The floor at N ≥ 2 images, measured where there are N held-out ones, else extrapolated."""
    shuffled = heldout[np.random.default_rng(SEED).permutation(len(heldout))]
    extrapolated = num_images > len(heldout)
    if extrapolated:
        distance = _line_fit(num_images, shuffled, reference_statistics)
    else:
        distance = _mean_distance(num_images, shuffled, reference_statistics)
    kernel = kernel_distance(shuffled[:num_images], reference)
    return Floor(num_images, distance, kernel, extrapolated)


def _mean_distance(size: int, shuffled: Array, reference: Statistics) -> float:
    """The mean over as many disjoint subsets of `size` as there are, up to MAX_SUBSETS."""
    subsets = min(MAX_SUBSETS, len(shuffled) // size)
    parts = (shuffled[i * size : (i + 1) * size] for i in range(subsets))
    return float(np.mean([frechet_distance(statistics(part), reference) for part in parts]))


def _line_fit(num_images: int, shuffled: Array, reference: Statistics) -> float:
    """a + b/N through the distances of held-out subsets; a distance is never below zero."""
    count = len(shuffled)
    inverse = np.linspace(1 / count, 2 / count, FIT_POINTS)
    sizes = sorted({max(2, round(1 / value)) for value in inverse})
    distances = [_mean_distance(size, shuffled, reference) for size in sizes]
    if len(sizes) == 1:
        return distances[0]
    slope, intercept = np.polyfit([1 / size for size in sizes], distances, 1)
    return max(0.0, float(intercept + slope / num_images))
