"""Scores of each class, for class-conditional samples."""

from typing import NamedTuple

import numpy as np

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.scores.floor import floor_at
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.images.store import Labels

MIN_IMAGES = 2  # per class, for samples and for real images
MAX_TARGETS = 128  # cached; each takes twice the memory of its features


class LabelledFeatures(NamedTuple):
    """Features (N, D) and the class of each image."""

    features: FeatureArray
    labels: Labels

    def of(self, label: int) -> FeatureArray:
        """Return the features of one class."""
        return np.asarray(self.features[self.labels == label])


class ClassScore(NamedTuple):
    """A class's Fréchet distance with `num_images` images; `floor` is that of as many held-out images."""

    num_images: int
    distance: float
    floor: float | None


class RealClasses:
    """The Gaussians and floors of the real classes, computed once.

    Only the first MAX_TARGETS Gaussians are cached; the others are computed for every sample. Classes are
    visited in the same order each time, so that a least-recently-used cache would never hit.
    """

    def __init__(self, reference: LabelledFeatures, heldout: LabelledFeatures | None) -> None:
        self.reference, self.heldout = reference, heldout
        self._targets: dict[int, Target | None] = {}
        self._floors: dict[tuple[int, int], float | None] = {}

    def target(self, label: int) -> Target | None:
        """Return the class's Gaussian, None if there are too few images."""
        if label in self._targets:
            return self._targets[label]
        real = self.reference.of(label)
        target = None if len(real) < MIN_IMAGES else Target(real)
        if len(self._targets) < MAX_TARGETS:
            self._targets[label] = target
        return target

    def floor(self, label: int, num_images: int, target: Target) -> float | None:
        """Return the distance of held-out images to the class's Gaussian, None if there are too few."""
        key = (label, num_images)
        if key not in self._floors:
            self._floors[key] = self._floor(label, num_images, target)
        return self._floors[key]

    def _floor(self, label: int, num_images: int, target: Target) -> float | None:
        unseen = None if self.heldout is None else self.heldout.of(label)
        if unseen is None or len(unseen) < MIN_IMAGES:
            return None
        return floor_at(num_images, unseen, target).distance


def class_scores(sample: LabelledFeatures, real: RealClasses, classes: list[str]) -> dict[str, ClassScore]:
    """Return the score of every class with samples and real images, by its name."""
    scores = {}
    for label, name in enumerate(classes):
        ours, target = sample.of(label), real.target(label)
        if len(ours) >= MIN_IMAGES and target is not None:
            distance = ProjectedSample(ours, target).distance
            scores[name] = ClassScore(len(ours), distance, real.floor(label, len(ours), target))
    return scores
