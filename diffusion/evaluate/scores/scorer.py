"""Score many samples against one reference. What depends only on the reference is computed once."""

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.choice.confidence import interval
from diffusion.evaluate.features.extract import Features
from diffusion.evaluate.features.extractors import exact_float32
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores import kernel_distance
from diffusion.evaluate.scores.class_scores import LabelledFeatures, RealClasses, class_scores
from diffusion.evaluate.scores.cmmd import Embeddings, cmmd
from diffusion.evaluate.scores.floor import Floor, fit_line, floor_at, floor_error, shuffled
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.jackknife import grouped, image_errors
from diffusion.evaluate.scores.kernel_distance import Kernels, OverSubsets
from diffusion.evaluate.scores.moments import Float
from diffusion.evaluate.scores.precision_recall import Manifold, memorisation, overlap
from diffusion.evaluate.scores.published_distance import PublishedDistance, PublishedTarget
from diffusion.evaluate.scores.torch_fidelity_scores import (
    Statistics,
    frechet_distance,
    inception_score,
    statistics,
)
from diffusion.evaluate.statistics_file import PublishedStatistics
from diffusion.images.store import Labels
from diffusion.protocol.card import Card, protocol_card, statistics_fields
from diffusion.protocol.extractors import ExtractorSpec, extractor_spec

Scores = dict[str, float]


class SampleScores(NamedTuple):
    """A sample's scores by name, and the errors of those with an interval.

    The squares of a score's errors sum to its variance. The errors of two samples of equal size are paired.
    """

    scores: Scores
    errors: dict[str, Float]


class Scorer:
    """Scores samples under the names of the reference's extractor, in exact float32.

    Args:
        intervals: add confidence intervals.
        most, most_samples: limits of the real images and samples that are compared pairwise.
        published: published statistics; the distance to them is a further score.
    """

    def __init__(
        self,
        reference: Reference,
        intervals: bool,
        most: int,
        device: torch.device | str = "cpu",
        most_samples: int | None = None,
        published: PublishedStatistics | None = None,
    ) -> None:
        self.reference, self.intervals, self.most = reference, intervals, most
        self.most_samples = most_samples or most
        self.device = torch.device(device)
        self.spec: ExtractorSpec = extractor_spec(reference.meta["extractor"])
        self.published = published
        self.floor = lru_cache(self._floor)
        self._floor_error = lru_cache(self._measure_floor_error)
        self._drawn = lru_cache(self._draw)

    def card(self, sampling: Card, num_images: int) -> Card:
        """Return the full card; `sampling` is the part that comes with the samples."""
        most = self.most_samples, self.most
        card = protocol_card(sampling, num_images, self.reference.meta, self.spec.resize, most)
        return card if self.published is None else card | statistics_fields(self.published.facts)

    def scores(self, sample: Features) -> Scores:
        """Return every score of a sample; `floor` and `excess` need held-out images.

        `memorisation` needs both splits. `…_low` and `…_high` are the ends of a confidence interval.
        """
        return self.scored(sample).scores

    @exact_float32()
    def scored(self, sample: Features) -> SampleScores:
        """Return the scores, and the errors of those with an interval.

        The projection of a set takes the most memory, so that no two are held at a time: the held-out images
        come first, and only a number of them is kept.
        """
        floor = self._known_floor(len(sample))
        limit, by_image = self._before_target(sample)
        kernels = kernel_distance.kernels(sample.features, self.reference.features)
        manifold = Manifold(sample.features, self.most_samples, self.device)
        own = statistics(sample.features)
        distance = frechet_distance(own, self._statistics)
        near = self._kernel_distance(sample, kernels)
        scores = {self.spec.distance: distance} | self._distances(sample, limit, near)
        scores |= self._overlap(manifold) | self._gaussian_distance(sample)
        train, test = self.reference.train_and_test
        if train is not None and test is not None:
            found = memorisation(manifold, train, test)
            scores |= {"memorisation": found.mean, "memorisation_std": found.std}
        if floor is not None:
            scores["floor"] = floor.distance
            scores["excess"] = scores[self.spec.distance] - floor.distance
        errors: dict[str, Float] = {}
        if by_image is not None:
            errors[self.spec.distance] = grouped(by_image)
            errors[self.spec.kernel_distance] = _kernel_errors(kernels, near)
        if self._published_target is not None:
            against = PublishedDistance(sample.features, own, self._published_target)
            scores |= {self.spec.published: against.distance, self.spec.published_limit: against.limit}
            errors |= {self.spec.published: grouped(against.errors)} if errors else {}
        return SampleScores(scores | self._ends(scores, errors, len(sample)), errors)

    @exact_float32()
    def scores_without_distance(self, sample: Features) -> Scores:
        """Return the scores that are not based on a Fréchet distance.

        For a caller with a distance to statistics of more images than the reference has.
        """
        kernels = kernel_distance.kernels(sample.features, self.reference.features)
        near = self._kernel_distance(sample, kernels)
        scores = self._kernel_scores(sample, near) | self._gaussian_distance(sample)
        scores |= self._overlap(Manifold(sample.features, self.most_samples, self.device))
        errors = {}
        if self._has_errors(len(sample)):
            errors[self.spec.kernel_distance] = _kernel_errors(kernels, near)
        return scores | self._ends(scores, errors, len(sample))

    @exact_float32()
    def classes(self, sample: Features, labels: Labels | None, names: list[str]) -> dict[str, Any]:
        """Return number, distance, floor and excess of each class by name.

        Empty unless sample and reference have the same classes.
        """
        real = self._real_classes
        if labels is None or real is None or list(names) != self.reference.classes:
            return {}
        entries: dict[str, Any] = {}
        for name, score in class_scores(LabelledFeatures(sample.features, labels), real, names).items():
            entries[name] = {"num_images": score.num_images, self.spec.distance: score.distance}
            if score.floor is not None:
                entries[name] |= {"floor": score.floor, "excess": score.distance - score.floor}
        return entries

    @exact_float32()
    def real(self, num_images: int) -> Scores | None:
        """Return the scores of as many held-out real images, or of all; None without any.

        The distance is the floor at `num_images`. The Inception score, which has no such bias, is of all
        images.
        """
        floor, heldout = self.floor(num_images), self.reference.heldout
        if floor is None or heldout is None:
            return None
        sample = Features(heldout.features[shuffled(len(heldout))[:num_images]], heldout.logits)
        kernels = kernel_distance.kernels(sample.features, self.reference.features)
        near = self._kernel_distance(sample, kernels)
        limit = fit_line(ProjectedSample(sample.features, self.target)).limit
        scores = self._distances(sample, limit, near)
        scores |= self._overlap(Manifold(sample.features, self.most_samples, self.device))
        if self._published_target is not None and len(sample) > 1:
            own = statistics(sample.features)
            against = PublishedDistance(sample.features, own, self._published_target)
            scores |= {self.spec.published: against.distance}
        return {self.spec.distance: floor.distance, **scores}

    def _kernel_distance(self, sample: Features, kernels: Kernels) -> OverSubsets:
        drawn, real_sums = self._drawn(len(sample))
        return kernel_distance.kernel_distance(kernels, drawn, real_sums)

    def _known_floor(self, num_images: int) -> Floor | None:
        """Return the floor, and compute its error if it is needed later."""
        floor = self.floor(num_images)
        if floor is not None and self._has_errors(num_images):
            self._floor_error(num_images)
        return floor

    def _has_errors(self, num_images: int) -> bool:
        return self.intervals and num_images > 2

    def _before_target(self, sample: Features) -> tuple[float, Float | None]:
        """Return the limit, and each image's error of the distance if needed."""
        projected = ProjectedSample(sample.features, self.target)
        limit = fit_line(projected).limit
        if not self._has_errors(len(sample)):
            return limit, None
        return limit, image_errors(projected.leave_one_out(), projected.interactions())

    def _distances(self, sample: Features, limit: float, near: OverSubsets) -> Scores:
        return {self.spec.limit: limit, **self._kernel_scores(sample, near)}

    def _kernel_scores(self, sample: Features, near: OverSubsets) -> Scores:
        spec = self.spec
        scores = {spec.kernel_distance: near.mean, f"{spec.kernel_distance}_std": near.std}
        if spec.score is None or sample.logits is None:
            return scores
        certain = inception_score(sample.logits)
        return {**scores, spec.score: certain.mean, f"{spec.score}_std": certain.std}

    def _gaussian_distance(self, sample: Features) -> Scores:
        if self.spec.gaussian_distance is None:
            return {}
        embeddings = Embeddings(sample.features, self.device)
        return {self.spec.gaussian_distance: cmmd(embeddings, self._embeddings)}

    def _overlap(self, manifold: Manifold) -> Scores:
        found = overlap(manifold, self._real_manifold)
        return {self.spec.named(name): value for name, value in found._asdict().items()}

    def _ends(self, scores: Scores, errors: dict[str, Float], num_images: int) -> Scores:
        """Return the ends of the intervals, by name."""
        deviations = {name: float(np.linalg.norm(parts)) for name, parts in errors.items()}
        if errors and "excess" in scores:
            of_floor = self._floor_error(num_images)
            if of_floor is not None:
                deviations["excess"] = float(np.hypot(deviations[self.spec.distance], of_floor))
        ends: Scores = {}
        positive = self.spec.distance, self.spec.published
        for name, deviation in deviations.items():
            low, high = interval(scores[name], deviation, positive=name in positive)
            ends |= {f"{name}_low": low, f"{name}_high": high}
        return ends

    @cached_property
    def target(self) -> Target:
        """The reference's Gaussian."""
        return Target(self.reference.features)

    @cached_property
    def _statistics(self) -> Statistics:
        return statistics(self.reference.features)

    @cached_property
    def _published_target(self) -> PublishedTarget | None:
        return None if self.published is None else PublishedTarget(self.published)

    @cached_property
    def _embeddings(self) -> Embeddings:
        return Embeddings(self.reference.features, self.device)

    @cached_property
    def _real_manifold(self) -> Manifold:
        return Manifold(self.reference.features, self.most, self.device)

    @cached_property
    def _real_classes(self) -> RealClasses | None:
        reference, heldout = self.reference, None
        if reference.labels is None:
            return None
        if reference.heldout is not None and reference.heldout_labels is not None:
            heldout = LabelledFeatures(reference.heldout.features, reference.heldout_labels)
        return RealClasses(LabelledFeatures(reference.features, reference.labels), heldout)

    def _floor(self, num_images: int) -> Floor | None:
        heldout = self.reference.heldout
        return None if heldout is None else floor_at(num_images, heldout.features, self.target)

    def _measure_floor_error(self, num_images: int) -> float | None:
        heldout = self.reference.heldout
        return None if heldout is None else floor_error(num_images, heldout.features, self.target)

    def _draw(self, count: int) -> Any:
        real = self.reference.features
        drawn = kernel_distance.subsets(count, len(real))
        return drawn, kernel_distance.own_sums(kernel_distance.Kernel(real, real), drawn.reference)


def _kernel_errors(kernels: Kernels, near: OverSubsets) -> Float:
    """Return the errors of a kernel distance: of groups of images, then of random subsets."""
    images = image_errors(kernel_distance.leave_one_out(kernels), kernel_distance.interactions(kernels))
    return np.concatenate([grouped(images), near.errors])
