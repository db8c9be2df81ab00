"""Any images against published statistics, by the code that scores a sweep.

They give the Fréchet distance. Where real images lie beside them, those give what needs images: that is how
OpenAI's evaluator has precision and recall.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.choice.confidence import CONFIDENCE, interval
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.feature_cache import cached_features
from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.features.extractors import exact_float32, load_extractor
from diffusion.evaluate.features.reference_features import make_reference_of
from diffusion.evaluate.scores.published_distance import PublishedDistance, PublishedTarget
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.scores.torch_fidelity_scores import statistics
from diffusion.evaluate.statistics_file import PublishedStatistics
from diffusion.images.store import ImageStore
from diffusion.protocol.card import neighbour_card
from diffusion.protocol.published_statistics import missing_reason, missing_scores, statistics_card
from diffusion.system.devices import scoring_device

FEWEST = 3  # images that an interval can be told of

Progress = Callable[[int, int], None]


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
    """Score the sample against the file: `images`, `extractor`, `reference`, `scores` and `card`.

    `images` are the real ones beside the statistics, if any; the others are as `evaluate_pair`. `not_scored`
    names the scores that they do not give, and why. `progress` gets (done, total) of the images that are
    extracted.
    """
    spec, usual = published.spec, EvaluateConfig()
    loaded = load_extractor(spec.name, weights, scoring_device(), weights_sha256)
    stores = [sample] if images is None else [sample, images]
    seen, *real = cached_features(loaded, stores, batch_size, progress)
    card = statistics_card(
        sample.meta.get("card", {}), len(sample), published.facts, spec, loaded.weights_sha256
    )
    reference, scores = {**published.facts, "features": spec.features}, _scores(seen.features, published)
    if images is not None:
        reference |= {"images": len(images), "images_digest": images.digest}
        most = prc_images or usual.prc_images
        of_images = make_reference_of(loaded, images, real[0])
        scorer = Scorer(of_images, usual.intervals, most, loaded.device, prc_samples)
        scores |= scorer.besides_distance(seen)
        card |= neighbour_card(len(sample), len(images), (scorer.most_samples, most))
    return {
        "images": {"path": str(sample.path), "digest": sample.digest, "count": len(sample)},
        "extractor": spec.name,
        "reference": reference,
        "intervals": {"confidence": CONFIDENCE},
        "scores": scores,
        "not_scored": {
            "scores": missing_scores(spec, images is not None),
            "why": missing_reason(images is not None),
        },
        "card": card,
    }


@exact_float32()
def _scores(features: FeatureArray, published: PublishedStatistics) -> dict[str, float]:
    """The distance, its interval and its limit for ever more images, by name."""
    spec = published.spec
    against = PublishedDistance(features, statistics(features), PublishedTarget(published))
    scores = {spec.distance: against.distance, spec.limit: against.limit}
    if len(features) < FEWEST:
        return scores
    ends = interval(scores[spec.distance], float(np.linalg.norm(against.errors)), positive=True)
    return scores | {f"{spec.distance}_low": ends.low, f"{spec.distance}_high": ends.high}
