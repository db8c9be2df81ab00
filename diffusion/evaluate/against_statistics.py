"""Any images against published statistics: the Fréchet distance alone, by the code that scores a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.choice.certainty import CONFIDENCE, interval
from diffusion.evaluate.features.extract import Array
from diffusion.evaluate.features.extractors import exact_float32, load_extractor
from diffusion.evaluate.kept import kept_features
from diffusion.evaluate.published import PublishedStatistics
from diffusion.evaluate.scores.published import AgainstPublished, PublishedTarget
from diffusion.evaluate.scores.scores import statistics
from diffusion.images.store import ImageStore
from diffusion.protocol.published import WHY_NOT, not_scored, statistics_card
from diffusion.system.devices import scoring_device

FEWEST = 3  # images that an interval can be told of

Progress = Callable[[int, int], None]


def evaluate_against_statistics(
    sample: ImageStore,
    published: PublishedStatistics,
    *,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against the file: `images`, `extractor`, `reference`, `scores` and `card`.

    `not_scored` names the scores that statistics do not give, and why. `progress` gets (done, total) of the
    images that are extracted.
    """
    spec = published.spec
    loaded = load_extractor(spec.name, weights, scoring_device(), weights_sha256)
    (seen,) = kept_features(loaded, [sample], batch_size, progress)
    card = sample.meta.get("card", {})
    return {
        "images": {"path": str(sample.path), "digest": sample.digest, "count": len(sample)},
        "extractor": spec.name,
        "reference": {**published.facts, "features": spec.features},
        "intervals": {"confidence": CONFIDENCE},
        "scores": _scores(seen.features, published),
        "not_scored": {"scores": not_scored(spec), "why": WHY_NOT},
        "card": statistics_card(card, len(sample), published.facts, spec, loaded.weights_sha256),
    }


@exact_float32()
def _scores(features: Array, published: PublishedStatistics) -> dict[str, float]:
    """The distance, its interval and its limit for ever more images, by name."""
    spec = published.spec
    against = AgainstPublished(features, statistics(features), PublishedTarget(published))
    scores = {spec.distance: against.distance, spec.limit: against.limit}
    if len(features) < FEWEST:
        return scores
    ends = interval(scores[spec.distance], float(np.linalg.norm(against.errors)), positive=True)
    return scores | {f"{spec.distance}_low": ends.low, f"{spec.distance}_high": ends.high}
