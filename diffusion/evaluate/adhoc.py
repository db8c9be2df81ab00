"""Any images against any others, by the code that scores a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.evaluate import common, score
from diffusion.evaluate.features.extract import extract, shifted
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference import build_reference, matching_reference
from diffusion.evaluate.pair import Pair
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.layout import REFERENCE
from diffusion.protocol.extractors import default_extractor
from diffusion.system.devices import default_device

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
    where they are of the same images.
    """
    sample, real, heldout = pair.sample, pair.real, pair.heldout
    name = extractor or default_extractor(real.images.shape[1])
    loaded = load_extractor(name, weights, default_device(), weights_sha256)
    reference = None if heldout is None else matching_reference(REFERENCE, loaded, pair.split, pair.against)
    before = 0
    if reference is None:
        reference = build_reference(loaded, real, heldout, batch_size, progress, following=len(sample))
        before = len(real) + (0 if heldout is None else len(heldout))
    watch = shifted(progress, before, before + len(sample))
    features = extract(loaded, sample.images, batch_size, watch)
    usual = EvaluateConfig()
    scorer = Scorer(reference, usual.intervals, usual.prc_images, loaded.device)
    return {
        "images": {"path": str(sample.path), "digest": sample.digest, "count": len(sample)},
        **common(scorer, len(sample)),
        **score(features, sample, scorer),
    }
