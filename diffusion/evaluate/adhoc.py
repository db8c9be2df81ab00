"""Score any images against other images or against published statistics, by the code that scores a sweep."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.choice.confidence import CONFIDENCE, interval
from diffusion.evaluate.adhoc_inputs import ScoringInputs
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.feature_cache import cached_features
from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.features.extractors import exact_float32, load_extractor
from diffusion.evaluate.features.reference_features import make_reference_of, matching_reference
from diffusion.evaluate.scores.published_distance import PublishedDistance, PublishedTarget
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.scores.torch_fidelity_scores import statistics
from diffusion.evaluate.statistics_file import PublishedStatistics
from diffusion.evaluate.sweep_scores import score, shared_values
from diffusion.images.store import ImageStore
from diffusion.layout import REFERENCE
from diffusion.protocol.card import neighbour_card
from diffusion.protocol.extractors import default_extractor
from diffusion.protocol.published_statistics import missing_reason, missing_scores, statistics_card
from diffusion.system.devices import scoring_device

Progress = Callable[[int, int], None]

MIN_FOR_INTERVAL = 3  # images
SHARED = ("images", "extractor", "intervals")  # keys that a document has once for all feature spaces


def score_images(
    inputs: ScoringInputs,
    *,
    extractor: str | None = None,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    prc_images: int | None = None,
    prc_samples: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against the real images. Return `images`, `reference`, `scores` and `card`.

    Features come from data/reference if it fits, then from the feature cache; only the rest is extracted.

    Args:
        extractor: a name of EXTRACTORS; None for the bundled one for the images' size.
        prc_images, prc_samples: as in the section `evaluate`.
        progress: receives (done, total) of the images that are extracted.
    """
    sample, real, heldout = inputs.sample, inputs.real, inputs.heldout
    name = extractor or default_extractor(real.images.shape[1])
    loaded = load_extractor(name, weights, scoring_device(), weights_sha256)
    reference = None
    if heldout is not None:
        reference = matching_reference(REFERENCE, loaded, inputs.split, inputs.against)
    others = [] if reference is not None else [real, *([] if heldout is None else [heldout])]
    *real_features, features = cached_features(loaded, [*others, sample], batch_size, progress)
    if reference is None:
        held = real_features[1] if heldout is not None else None
        reference = make_reference_of(loaded, real, real_features[0], heldout, held)
    defaults = EvaluateConfig()
    most = prc_images or defaults.prc_images
    scorer = Scorer(reference, defaults.confidence_intervals, most, loaded.device, prc_samples)
    return {
        "images": _described(sample),
        **shared_values(scorer, len(sample)),
        **score(features, sample, scorer),
    }


def score_against_statistics(
    sample: ImageStore,
    published: PublishedStatistics,
    images: ImageStore | None = None,
    *,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    prc_images: int | None = None,
    prc_samples: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against published statistics. Return the keys of `score_images` and `not_scored`.

    The statistics give the Fréchet distance. `images`, the real images of the same file if it has some, give
    the other scores; this is how OpenAI's evaluator computes precision and recall. `not_scored` lists the
    missing scores and the reason. The other arguments are as in `score_images`.
    """
    spec, defaults = published.spec, EvaluateConfig()
    loaded = load_extractor(spec.name, weights, scoring_device(), weights_sha256)
    stores = [sample] if images is None else [sample, images]
    features, *real = cached_features(loaded, stores, batch_size, progress)
    sampling = sample.meta.get("card", {})
    card = statistics_card(sampling, len(sample), published.facts, spec, loaded.weights_sha256)
    reference: dict[str, Any] = {**published.facts, "features": spec.features}
    scores = _distance_scores(features.features, published)
    if images is not None:
        reference |= {"images": len(images), "images_digest": images.digest}
        most = prc_images or defaults.prc_images
        of_images = make_reference_of(loaded, images, real[0])
        scorer = Scorer(of_images, defaults.confidence_intervals, most, loaded.device, prc_samples)
        scores |= scorer.scores_without_distance(features)
        card |= neighbour_card(len(sample), len(images), (scorer.most_samples, most))
    has_images = images is not None
    return {
        "images": _described(sample),
        "extractor": spec.name,
        "reference": reference,
        "intervals": {"confidence": CONFIDENCE},
        "scores": scores,
        "not_scored": {"scores": missing_scores(spec, has_images), "why": missing_reason(has_images)},
        "card": card,
    }


@exact_float32()
def _distance_scores(features: FeatureArray, published: PublishedStatistics) -> dict[str, float]:
    """Return the distance, its interval and its limit for N → ∞, by name."""
    spec = published.spec
    distance = PublishedDistance(features, statistics(features), PublishedTarget(published))
    scores = {spec.distance: distance.distance, spec.limit: distance.limit}
    if len(features) < MIN_FOR_INTERVAL:
        return scores
    ends = interval(scores[spec.distance], float(np.linalg.norm(distance.errors)), positive=True)
    return scores | {f"{spec.distance}_low": ends.low, f"{spec.distance}_high": ends.high}


def _described(sample: ImageStore) -> dict[str, Any]:
    return {"path": str(sample.path), "digest": sample.digest, "count": len(sample)}


def merge_spaces(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge documents of the same images in several feature spaces.

    The first one is the document itself; the others are in `spaces` by the names of their extractors.
    """
    first, *further = documents
    spaces = {
        one["extractor"]: {name: part for name, part in one.items() if name not in SHARED} for one in further
    }
    return {**first, "spaces": spaces} if spaces else first


def check_extractors(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Load and release all extractors but the first, so that missing weights are detected before any work.

    Errors as `load_extractor`.
    """
    for name, given in list(options.items())[1:]:
        load_extractor(name, given.get("weights"), sha256=given.get("weights_sha256"))
