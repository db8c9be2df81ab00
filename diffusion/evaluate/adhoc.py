"""Any images against any others, by the code that scores a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.evaluate import common, score
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference import matching_reference, reference_of
from diffusion.evaluate.kept import kept_features
from diffusion.evaluate.pair import Pair
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.layout import REFERENCE
from diffusion.protocol.extractors import default_extractor
from diffusion.system.devices import scoring_device

Progress = Callable[[int, int], None]


def evaluate_pair(
    pair: Pair,
    *,
    extractor: str | None = None,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against the real images: `images`, `reference`, `scores` and `card`.

    `extractor` None takes the embedded one for the images' size. Features that lie in data/reference are used
    where they are of the same images; else those that are kept from an earlier call, and what there is none
    of is extracted. `progress` gets (done, total) of the images that are extracted.
    """
    sample, real, heldout = pair.sample, pair.real, pair.heldout
    name = extractor or default_extractor(real.images.shape[1])
    loaded = load_extractor(name, weights, scoring_device(), weights_sha256)
    reference = None if heldout is None else matching_reference(REFERENCE, loaded, pair.split, pair.against)
    others = [] if reference is not None else [real, *([] if heldout is None else [heldout])]
    *seen, features = kept_features(loaded, [*others, sample], batch_size, progress)
    if reference is None:
        reference = reference_of(loaded, real, seen[0], heldout, seen[1] if heldout is not None else None)
    usual = EvaluateConfig()
    scorer = Scorer(reference, usual.intervals, usual.prc_images, loaded.device)
    return {
        "images": {"path": str(sample.path), "digest": sample.digest, "count": len(sample)},
        **common(scorer, len(sample)),
        **score(features, sample, scorer),
    }
