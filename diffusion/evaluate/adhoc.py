"""Any images against any others, by the code that scores a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.evaluate import common, score
from diffusion.evaluate.features.extract import extract, shifted, verify
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference import OTHER_SPLIT, build_reference, matching_reference
from diffusion.evaluate.open_images import is_prepared, open_images
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.store import ImageStore, open_store
from diffusion.layout import REFERENCE
from diffusion.protocol.extractors import default_extractor
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError

Progress = Callable[[int, int], None]


def evaluate_images(
    path: Path | str,
    against: Path | str,
    *,
    extractor: str | None = None,
    split: str = "train",
    weights: Path | None = None,
    weights_sha256: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the images at `path` against those at `against`: `images`, `reference`, `scores` and `card`.

    Both are a store, a folder of image files or an npz; `against` may be a prepared data set, of which
    `split` is the reference and the other split makes the floor. `extractor` None takes the embedded one
    for the images' size. Features that lie in data/reference are used where they are of the same images.
    """
    path, against = Path(path), Path(against)
    sample = open_images(path)
    real, heldout = _open_real(against, split)
    if sample.images.shape[1:3] != real.images.shape[1:3]:
        sizes = ["×".join(map(str, store.images.shape[1:3])) for store in (sample, real)]
        raise DiffctlError(
            f"the images in {path} are {sizes[0]} and those in {against} {sizes[1]}: "
            f"make them the way the reference was made, since resizing moves every score"
        )
    name = extractor or default_extractor(real.images.shape[1])
    loaded = load_extractor(name, weights, default_device(), weights_sha256)
    reference = None if heldout is None else matching_reference(REFERENCE, loaded, split, against)
    before = 0
    if reference is None:
        reference = build_reference(loaded, real, heldout, batch_size, progress, following=len(sample))
        before = len(real) + (0 if heldout is None else len(heldout))
    verify(sample)
    watch = shifted(progress, before, before + len(sample))
    features = extract(loaded, sample.images, batch_size, watch)
    usual = EvaluateConfig()
    scorer = Scorer(reference, usual.bootstrap, usual.prc_images, loaded.device)
    return {
        "images": {"path": str(path), "digest": sample.digest, "count": len(sample)},
        **common(scorer, len(sample)),
        **score(features, sample, scorer),
    }


def _open_real(against: Path, split: str) -> tuple[ImageStore, ImageStore | None]:
    if is_prepared(against):
        return open_store(against / split), open_store(against / OTHER_SPLIT[split])
    return open_images(against), None
