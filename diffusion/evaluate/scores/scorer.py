"""Score many samples against one reference. What depends only on the reference is computed once."""

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from diffusion.choice.confidence import interval
from diffusion.code_digest import plugin_card
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features, exact_float32
from diffusion.evaluate.features.reference_features import Reference, extraction_code
from diffusion.evaluate.scores import kernel_distance as kernel
from diffusion.evaluate.scores.feature_likelihood import FeatureLikelihood
from diffusion.evaluate.scores.frechet import Target
from diffusion.evaluate.scores.frechet_scores import (
    PublishedStatistics,
    RealClasses,
    floor_at,
    floor_error,
    limit_and_errors,
    shuffled,
)
from diffusion.evaluate.scores.jackknife import grouped, image_errors
from diffusion.evaluate.scores.moments import Float, Statistics, frechet_distance, inception_score, statistics
from diffusion.evaluate.scores.precision_recall import Manifold, memorisation, overlap
from diffusion.images.store import Labels
from diffusion.protocol.card import SHARES, SUBSETS, Card, protocol_card, statistics_fields, subset_size
from diffusion.protocol.extractors import ExtractorSpec, extractor_spec

Scores = dict[str, float]

MIN_FOR_INTERVAL = 3  # images


# Scores, and errors: the sum of their squares is a score's variance. Errors of sets of one size are paired.
SampleScores = tuple[Scores, dict[str, Float]]


class Scorer:
    """Scores samples under the names of the reference's extractor, in exact float32.

    The distance to `published` statistics is a further score.
    """

    def __init__(
        self,
        reference: Reference,
        section: EvaluateConfig,
        device: torch.device | str = "cpu",
        published: PublishedStatistics | None = None,
    ) -> None:
        self.reference, self.intervals = reference, section.confidence_intervals
        self.has_likelihood = section.feature_likelihood
        self.limits = section.limits
        self.device = torch.device(device)
        self.spec: ExtractorSpec = extractor_spec(reference.meta["extractor"])
        self.published = published
        self.floor = lru_cache(self._floor)
        self._floor_error = lru_cache(self._measure_floor_error)
        self._drawn = lru_cache(self._draw)

    def card(self, sampling: Card, num_images: int) -> Card:
        """Return the full card; `sampling` is the part that comes with the samples."""
        card = protocol_card(sampling, num_images, self.reference.meta, self.spec, self.limits)
        published = {} if self.published is None else statistics_fields(self.published.facts)
        return card | plugin_card("extractor_plugins", extraction_code(self.spec)) | published

    def scores(self, sample: Features, *, enlarged: bool = False) -> Scores:
        """Return every score of a sample that the reference allows, and the ends of intervals."""
        return self.scored(sample, enlarged=enlarged)[0]

    @exact_float32()
    def scored(self, sample: Features, *, enlarged: bool = False) -> SampleScores:
        """Return the scores, and the errors of those with an interval.

        A sample of `enlarged` test images has no score of copies. The projection of a set takes the most
        memory, so that no two are held at a time: the held-out images come first, and only a number of them
        is kept.
        """
        count, spec = len(sample), self.spec
        floor, has_errors = self.floor(count), self._has_errors(count)
        if has_errors:
            self._floor_error(count)
        limit, by_image = limit_and_errors(sample.features, self.target, has_errors)
        distance = frechet_distance(statistics(sample.features), self._statistics)
        scores = {spec.distance: distance, spec.limit: limit}
        errors = {} if by_image is None else {spec.distance: by_image}
        manifold = Manifold(sample.features, self.limits.samples, self.device)
        compared, compared_errors = self._compared(sample, manifold, has_errors)
        scores |= compared
        errors |= compared_errors
        scores |= {} if enlarged else self._of_copies(sample, manifold)
        if floor is not None:
            scores |= {"floor": floor, "excess": distance - floor}
        if self.published is not None:
            limit, by_image = limit_and_errors(sample.features, self.published, has_errors)
            scores[spec.published] = self.published.distance(sample.features)
            scores[f"{spec.published}_inf"] = limit
            errors |= {} if by_image is None else {spec.published: by_image}
        return scores | self._ends(scores, errors, count), errors

    @exact_float32()
    def scores_without_distance(self, sample: Features) -> Scores:
        """Return the scores without a Fréchet distance, as next to one to published statistics."""
        manifold = Manifold(sample.features, self.limits.samples, self.device)
        scores, errors = self._compared(sample, manifold, self._has_errors(len(sample)))
        return scores | self._ends(scores, errors, len(sample))

    @exact_float32()
    def classes(self, sample: Features, labels: Labels | None, names: list[str]) -> dict[str, Any]:
        """Return number, distance, floor and excess by class; empty for sets of different classes."""
        real = self._real_classes
        if labels is None or real is None or list(names) != list(self.reference.meta.get("classes", [])):
            return {}
        features, metric = sample.features, self.spec.distance
        found = {name: real.scores(features[labels == i], i, metric) for i, name in enumerate(names)}
        return {name: values for name, values in found.items() if values is not None}

    @exact_float32()
    def real(self, num_images: int) -> dict[str, Any] | None:
        """Return `num_images`, `extrapolated` and the scores of as many held-out real images.

        None without any. The distance is the floor at `num_images`. The Inception score is of all images. If
        there are fewer images, a distance to published statistics is extrapolated too, and scores that depend
        on the number of images are left out.
        """
        floor, heldout = self.floor(num_images), self.reference.heldout
        if floor is None or heldout is None:
            return None
        sample = Features(heldout.features[shuffled(len(heldout))[:num_images]], heldout.logits)
        limit, _ = limit_and_errors(sample.features, self.target, False)
        manifold = Manifold(sample.features, self.limits.samples, self.device)
        is_extrapolated = num_images > len(heldout)
        scores: dict[str, Any] = {"num_images": num_images, "extrapolated": is_extrapolated}
        scores |= {self.spec.distance: floor, self.spec.limit: limit}
        scores |= self._compared(sample, manifold, has_errors=False)[0]
        if (published := self.published) is not None:
            scores[self.spec.published] = (
                floor_at(num_images, heldout.features, published)
                if is_extrapolated
                else published.distance(sample.features)
            )
        of_fewer = {self.spec.limit, self.spec.gaussian_distance} if is_extrapolated else set()
        if len(manifold) < min(num_images, self.limits.samples):
            of_fewer |= {self.spec.named(share) for share in SHARES}
        return {name: value for name, value in scores.items() if name not in of_fewer}

    def _of_copies(self, sample: Features, manifold: Manifold) -> Scores:
        """Return the scores that compare a sample with both splits; none if one is missing."""
        train, test = self.reference.train_and_test
        if train is None or test is None:
            return {}
        found = memorisation(manifold, train, test)
        scores = {"memorisation": found.mean, "memorisation_std": found.std}
        if self._likelihood is not None:
            scores[self.spec.named("fld")] = self._likelihood(sample.features)
        return scores

    def _has_errors(self, num_images: int) -> bool:
        return self.intervals and num_images >= MIN_FOR_INTERVAL

    def _compared(self, sample: Features, manifold: Manifold, has_errors: bool) -> SampleScores:
        """Return the scores from pairs of images: kernel distances, Inception score, overlap."""
        spec = self.spec
        features, real = sample.features, self.reference.features
        own, cross = kernel.Kernel(features, features), kernel.Kernel(features, real)
        near = kernel.kernel_distance(own, cross, *self._drawn(len(sample)))
        mean, std = float(near.mean()), float(near.std())
        scores = {spec.kernel_distance: mean, f"{spec.kernel_distance}_std": std}
        if spec.score is not None and sample.logits is not None:
            certain = inception_score(sample.logits)
            scores |= {spec.score: certain.mean, f"{spec.score}_std": certain.std}
        found = overlap(manifold, self._real_manifold)
        scores |= {spec.named(name): value for name, value in found._asdict().items()}
        if spec.gaussian_distance is not None:
            embeddings = torch.from_numpy(sample.features).to(self.device)
            scores[spec.gaussian_distance] = kernel.cmmd(embeddings, *self._embeddings)
        if not has_errors:
            return scores, {}
        by_image = image_errors(kernel.leave_one_out(own, cross), kernel.interactions(own))
        by_subset = (near - mean) / np.sqrt(SUBSETS * (SUBSETS - 1))
        return scores, {spec.kernel_distance: np.concatenate([grouped(by_image), by_subset])}

    def _ends(self, scores: Scores, errors: dict[str, Float], num_images: int) -> Scores:
        """Return the ends of the intervals, by name."""
        deviations = {name: float(np.linalg.norm(parts)) for name, parts in errors.items()}
        if "excess" in scores and errors and (of_floor := self._floor_error(num_images)) is not None:
            deviations["excess"] = float(np.hypot(deviations[self.spec.distance], of_floor))
        ends: Scores = {}
        for name, deviation in deviations.items():
            positive = name in (self.spec.distance, self.spec.published)
            low, high = interval(scores[name], deviation, positive=positive)
            ends |= {f"{name}_low": low, f"{name}_high": high}
        return ends

    @cached_property
    def target(self) -> Target:
        """The reference's Gaussian."""
        return Target(self.reference.features)

    @cached_property
    def _likelihood(self) -> FeatureLikelihood | None:
        train, test = self.reference.train_and_test
        if not self.has_likelihood or train is None or test is None:
            return None
        limits = self.limits._replace(real=len(self._real_manifold))  # so that the card determines FLD
        return FeatureLikelihood(train, test, limits, self.device)

    @cached_property
    def _statistics(self) -> Statistics:
        return statistics(self.reference.features)

    @cached_property
    def _embeddings(self) -> tuple[torch.Tensor, float]:
        """The reference's features (N, D), and their kernel with themselves."""
        points = torch.from_numpy(self.reference.features).to(self.device)
        return points, kernel.mean_kernel(points, points)

    @cached_property
    def _real_manifold(self) -> Manifold:
        return Manifold(self.reference.features, self.limits.real, self.device)

    @cached_property
    def _real_classes(self) -> RealClasses | None:
        return None if self.reference.labels is None else RealClasses(self.reference)

    def _floor(self, num_images: int) -> float | None:
        heldout = self.reference.heldout
        return None if heldout is None else floor_at(num_images, heldout.features, self.target)

    def _measure_floor_error(self, num_images: int) -> float | None:
        heldout = self.reference.heldout
        return None if heldout is None else floor_error(num_images, heldout.features, self.target)

    def _draw(self, count: int) -> Any:
        real = self.reference.features
        drawn = kernel.subsets(count, len(real), subset_size(count, len(real), self.limits.kid_subset))
        return drawn, kernel.own_sums(kernel.Kernel(real, real), drawn[1])
