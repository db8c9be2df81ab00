"""Scores of each class by itself, for samples that were asked for a class."""

from typing import NamedTuple

import numpy as np

from diffusion.data.store import Labels
from diffusion.evaluation.features import Array
from diffusion.evaluation.floor import floor_at
from diffusion.evaluation.frechet import Projected, Target

LEAST = 2  # images of a class, sampled and real, that a covariance needs


class Labelled(NamedTuple):
    """Features (N, D) and the class of each image."""

    features: Array
    labels: Labels

    def of(self, label: int) -> Array:
        """The features of one class."""
        return np.asarray(self.features[self.labels == label])


class ClassScore(NamedTuple):
    """A class's Fréchet distance by `num_images` images; `floor` is that of as many held-out real ones."""

    num_images: int
    distance: float
    floor: float | None


def class_scores(
    sample: Labelled, reference: Labelled, heldout: Labelled | None, classes: list[str]
) -> dict[str, ClassScore]:
    """The score of every class that has samples and real images, by its name."""
    scores = {}
    for label, name in enumerate(classes):
        ours, real = sample.of(label), reference.of(label)
        if min(len(ours), len(real)) < LEAST:
            continue
        target = Target(real)
        unseen = None if heldout is None else heldout.of(label)
        floor = None
        if unseen is not None and len(unseen) >= LEAST:
            floor = floor_at(len(ours), unseen, target).distance
        scores[name] = ClassScore(len(ours), Projected(ours, target).distance, floor)
    return scores
