"""Any images against any others, by the code that scores a sweep."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.evaluate.adhoc_inputs import ScoringInputs
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.feature_cache import cached_features
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference_features import make_reference_of, matching_reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.sweep_scores import score, shared_values
from diffusion.layout import REFERENCE
from diffusion.protocol.extractors import default_extractor
from diffusion.system.devices import scoring_device

Progress = Callable[[int, int], None]

SHARED = ("images", "extractor", "intervals")  # what a document says once, or by the name of the space


def score_images(
    pair: ScoringInputs,
    *,
    extractor: str | None = None,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    prc_images: int | None = None,
    prc_samples: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against the real images: `images`, `reference`, `scores` and `card`.

    `extractor` None takes the embedded one for the images' size; `prc_images` and `prc_samples` are as in the
    section `evaluate`. Features that lie in data/reference are used where they are of the same images; else
    those that are kept from an earlier call, and what there is none of is extracted. `progress` gets (done,
    total) of the images that are extracted.
    """
    sample, real, heldout = pair.sample, pair.real, pair.heldout
    name = extractor or default_extractor(real.images.shape[1])
    loaded = load_extractor(name, weights, scoring_device(), weights_sha256)
    reference = None if heldout is None else matching_reference(REFERENCE, loaded, pair.split, pair.against)
    others = [] if reference is not None else [real, *([] if heldout is None else [heldout])]
    *seen, features = cached_features(loaded, [*others, sample], batch_size, progress)
    if reference is None:
        reference = make_reference_of(
            loaded, real, seen[0], heldout, seen[1] if heldout is not None else None
        )
    usual = EvaluateConfig()
    most = prc_images or usual.prc_images
    scorer = Scorer(reference, usual.intervals, most, loaded.device, prc_samples)
    return {
        "images": {"path": str(sample.path), "digest": sample.digest, "count": len(sample)},
        **shared_values(scorer, len(sample)),
        **score(features, sample, scorer),
    }


def merge_spaces(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document of the same images in several feature spaces, the first one's its own.

    What is said of further ones stands in `spaces` by their extractors' names.
    """
    first, *further = documents
    beside = {
        one["extractor"]: {name: part for name, part in one.items() if name not in SHARED} for one in further
    }
    return {**first, "spaces": beside} if beside else first


def check_extractors(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Load the extractors but the first, each with what it is given, and let go of them.

    So what a further one lacks, as weights, is said before the first one works; errors as `load_extractor`.
    """
    for name, options in list(given.items())[1:]:
        load_extractor(name, options.get("weights"), sha256=options.get("weights_sha256"))
