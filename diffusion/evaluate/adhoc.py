"""Score any images against other images or against published statistics, by the code that scores a sweep."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion.choice.confidence import CONFIDENCE, interval
from diffusion.evaluate.adhoc_inputs import ScoringInputs
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.feature_cache import cached_features
from diffusion.evaluate.features.extractors import (
    FeatureArray,
    Progress,
    exact_float32,
    space_extractor,
)
from diffusion.evaluate.features.reference_features import Reference, make_reference_of, matching_reference
from diffusion.evaluate.scores.frechet_scores import PublishedTarget, limit_and_errors
from diffusion.evaluate.scores.scorer import MIN_FOR_INTERVAL, Scorer
from diffusion.evaluate.statistics_file import PublishedStatistics
from diffusion.evaluate.sweep_scores import score, shared_values
from diffusion.images.store import ImageStore
from diffusion.layout import REFERENCE
from diffusion.protocol.card import missing_scores, neighbour_card, statistics_card

DEFAULTS = EvaluateConfig()
SHARED = ("images", "extractor", "intervals")  # keys that a document has once for all feature spaces


def score_images(
    inputs: ScoringInputs, section: EvaluateConfig = DEFAULTS, progress: Progress | None = None
) -> dict[str, Any]:
    """Score the sample against the real images. Return `images`, `reference`, `scores` and `card`.

    Features come from data/reference if it fits, then from the feature cache; only the rest is extracted.
    `progress` receives (done, total) of the images that are extracted.
    """
    sample, loaded = inputs.sample, space_extractor(section.spaces[0])
    reference: Reference | None = None
    real = [inputs.real]
    if inputs.heldout is not None:
        real.append(inputs.heldout)
        reference = matching_reference(REFERENCE, loaded, inputs.split, inputs.against)
    stores = [sample] if reference else [sample, *real]
    features, *of_real = cached_features(loaded, stores, section.batch_size, progress)
    scorer = Scorer(reference or make_reference_of(loaded, real, of_real), section, loaded.device)
    return {
        "images": _described(sample),
        **shared_values(scorer, len(sample)),
        **score(features, sample, scorer),
    }


def score_against_statistics(
    sample: ImageStore,
    published: PublishedStatistics,
    images: ImageStore | None = None,
    section: EvaluateConfig = DEFAULTS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against published statistics. Return the keys of `score_images` and `not_scored`.

    The statistics give the Fréchet distance. `images`, the real images of the same file if it has some, give
    the other scores; this is how OpenAI's evaluator computes precision and recall. `not_scored` lists the
    missing scores and the reason.
    """
    spec, loaded = published.spec, space_extractor(section.spaces[0])
    real = [] if images is None else [images]
    features, *of_real = cached_features(loaded, [sample, *real], section.batch_size, progress)
    sampling = sample.meta.get("card", {})
    card = statistics_card(sampling, len(sample), published.facts, spec, loaded.weights_sha256)
    reference: dict[str, Any] = {**published.facts, "features": spec.features}
    scores = _distance_scores(features.features, published)
    if images is not None:
        reference |= {"images": len(images), "images_digest": images.digest}
        scorer = Scorer(make_reference_of(loaded, real, of_real), section, loaded.device)
        scores |= scorer.scores_without_distance(features)
        card |= neighbour_card(len(sample), len(images), scorer.most)
    return {
        "images": _described(sample),
        "extractor": spec.name,
        "reference": reference,
        "intervals": {"confidence": CONFIDENCE},
        "scores": scores,
        "not_scored": missing_scores(spec, bool(real)),
        "card": card,
    }


@exact_float32()
def _distance_scores(features: FeatureArray, published: PublishedStatistics) -> dict[str, float]:
    """Return the distance, its interval and its limit for N → ∞, by name."""
    name, target = published.spec.distance, PublishedTarget(published)
    limit, errors = limit_and_errors(features, target, len(features) >= MIN_FOR_INTERVAL)
    scores = {name: target.distance(features), published.spec.limit: limit}
    if errors is None:
        return scores
    low, high = interval(scores[name], float(np.linalg.norm(errors)), positive=True)
    return scores | {f"{name}_low": low, f"{name}_high": high}


def _described(sample: ImageStore) -> dict[str, Any]:
    return {"path": str(sample.path), "digest": sample.digest, "count": len(sample)}


def merge_spaces(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge documents of the same images: the first, with the others in `spaces` by extractor."""
    first, *further = documents
    spaces = {
        one["extractor"]: {name: part for name, part in one.items() if name not in SHARED} for one in further
    }
    return {**first, "spaces": spaces} if spaces else first


def check_extractors(sections: Sequence[EvaluateConfig]) -> None:
    """Load and release all extractors but the first, to detect missing weights before any work."""
    for section in sections[1:]:
        space_extractor(section.spaces[0])
