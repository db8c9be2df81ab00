"""Score any images against other images or against published statistics, by the code that scores a sweep.

Images are stores, folders of image files, and npz files.
"""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.choice.confidence import CONFIDENCE, interval
from diffusion.code_digest import plugin_card
from diffusion.data.readers.archives import npz_keys, open_npz
from diffusion.data.readers.image_files import as_text, list_images, read_content
from diffusion.data.readers.pickles import integers
from diffusion.data.source import ImageProblem, summarize
from diffusion.evaluate.evaluate_config import OTHER_SPLIT, EvaluateConfig
from diffusion.evaluate.features.extractors import FeatureArray, Progress, exact_float32, space_extractor
from diffusion.evaluate.features.reference_features import (
    Reference,
    extraction_code,
    make_reference_of,
    matching_reference,
)
from diffusion.evaluate.references import cached_features
from diffusion.evaluate.scores.frechet_scores import PublishedStatistics, limit_and_errors
from diffusion.evaluate.scores.scorer import MIN_FOR_INTERVAL, Scorer
from diffusion.evaluate.statistics_file import has_array
from diffusion.evaluate.sweep_scores import score, shared_values
from diffusion.images.image_size import format_pixels, format_size
from diffusion.images.pictures import BadImage, load_pixels, open_image
from diffusion.images.store import Images, ImageStore, Labels, content_digest, open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import REFERENCE
from diffusion.protocol.card import missing_scores, neighbour_card, statistics_card
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, printable
from diffusion.system.memory import format_bytes, machine_memory
from diffusion.version import VERSION

MIN_IMAGES = 2  # a covariance needs two images
LOSSY = (".jpg", ".jpeg", ".webp")
IMAGES, LABELS = "arr_0", "arr_1"  # names in OpenAI's format


class ScoringInputs(NamedTuple):
    """Images of one size: the sample, the real images, and held-out real images for the floor.

    `against` and `split` describe the source of the real images. `heldout` is None unless it is a prepared
    data set.
    """

    sample: ImageStore
    real: ImageStore
    heldout: ImageStore | None
    against: Path
    split: str


def open_inputs(path: Path, against: Path, split: str | None = None) -> ScoringInputs:
    """Open the sample and the real images; of prepared data the split is train by default.

    UsageError for a split of images without splits; other errors as `open_images`.
    """
    has_splits = is_prepared(against)
    if split is not None and not has_splits:
        raise UsageError(f"--split has no effect: {printable(against)} has no splits, so leave it out")
    sample, heldout, chosen = open_images(path), None, split or "train"
    if has_splits:
        real, heldout = (open_store(against / one, PreparedMeta) for one in (chosen, OTHER_SPLIT[chosen]))
    else:
        real = open_images(against)
    _check_pair(sample, real, against)
    return ScoringInputs(sample, real, heldout, against, chosen)


def images_in_statistics(statistics: Path, sample: ImageStore) -> ImageStore | None:
    """Return the real images in a file of statistics, or None; errors as `open_images`."""
    if not has_array(statistics, IMAGES):
        return None
    real = open_npz_images(statistics, labelled=False)
    _check_pair(sample, real, statistics)
    return real


def is_prepared(path: Path) -> bool:
    """Return whether a folder is a prepared data set, with stores train/ and test/."""
    return _is_store(path / "train") and _is_store(path / "test")


def _is_store(path: Path) -> bool:
    return os.path.isfile(path / "images.npy")  # False also if it is not accessible


def open_images(path: Path) -> ImageStore:
    """Open images as a store, in the order of their file names.

    An npz file holds `arr_0`, uint8 (N, H, W, C), and optionally labels in `arr_1`. Image files are converted
    to RGB. They must be of one size, since resizing would change every score. Lossy files cause a
    DiffctlWarning. UsageError if there is nothing to open, DiffctlError for damaged or unfit images.
    """
    if not os.path.exists(path):
        raise UsageError(f"{printable(path)} does not exist or cannot be accessed")
    if not os.path.isdir(path):
        return open_npz_images(path)
    if _is_store(path):
        return open_store(path)
    if is_prepared(path):
        raise UsageError(f"{printable(path)} holds two splits: give {path / 'train'} or {path / 'test'}")
    return _as_store(path, _read_folder(path), None)


def _as_store(path: Path, images: Images, labels: Labels | None) -> ImageStore:
    return ImageStore(path, images, labels, {"name": path.name, "digest": content_digest(images, labels)})


def open_npz_images(path: Path, *, labelled: bool = True) -> ImageStore:
    """Open the images of an npz file, mapped, with its labels if `labelled`; errors as `open_images`."""
    names = npz_keys(path)
    if IMAGES not in names:
        raise DiffctlError(f"{printable(path)} has no {IMAGES}: store the images under that name")
    images = open_npz(path, IMAGES)
    if images.dtype != np.uint8 or len(images.shape) != 4 or not math.prod(images.shape[1:]):
        found = f"{images.dtype} {images.shape}"
        raise DiffctlError(f"{printable(path)}: {IMAGES} is {found}, want uint8 (N, H, W, C)")
    if not labelled or LABELS not in names:
        return _as_store(path, images, None)
    labels = integers(open_npz(path, LABELS), f"{printable(path)}: {LABELS}")
    if len(labels) != len(images):
        raise DiffctlError(f"{printable(path)}: {LABELS} has {len(labels)} labels for {len(images)} images")
    return _as_store(path, images, labels)


def _read_folder(path: Path) -> Images:
    """Return all images of a folder in RGB, (N, H, W, 3) uint8."""
    listing = list_images(path)
    names, bad = as_text(listing.paths), [*listing.problems]
    if not names:
        raise UsageError(f"{printable(path)} has no images: give a folder of image files, an npz or a store")
    if lossy := sum(name.lower().endswith(LOSSY) for name in names):
        found = f"{lossy:,} of the images in {printable(path)} are jpeg or webp"
        warnings.warn(f"{found}: lossy files change all scores", DiffctlWarning, stacklevel=2)
    images, first = np.empty((0, 0, 0, 3), np.uint8), ""
    for row, name in enumerate(names):
        try:
            content = read_content(path / name)
            with warnings.catch_warnings(action="ignore"), open_image(content) as image:  # of Pillow
                pixels = np.asarray(load_pixels(image, 3))
        except BadImage as error:
            bad.append(ImageProblem(name, str(error)))
            continue
        if not first:
            images, first = _allocate(path, (len(names), *pixels.shape)), name
        if pixels.shape != images.shape[1:]:
            found, other = (format_pixels(shape[:2]) for shape in (pixels.shape, images.shape[1:]))
            sizes = f"has {found}, and {printable(first)} {other}"
            raise DiffctlError(f"{printable(path / name)} {sizes}: give images of one size")
        images[row] = pixels
    check_usable(path, bad)
    return images


def check_usable(path: Path, problems: Sequence[ImageProblem]) -> None:
    """Raise DiffctlError if images of the folder `path` cannot be used."""
    if problems:
        found = f"{len(problems):,} of the images in {printable(path)} cannot be used"
        raise DiffctlError(f"{found}: {summarize(problems)}")


def _allocate(path: Path, shape: tuple[int, ...]) -> Images:
    """Return an empty array for the images in `path`; DiffctlError unless that much memory is free."""
    needed, free = math.prod(shape), machine_memory()[1]
    if needed > free:
        found = f"the images in {printable(path)} take {format_bytes(needed)} of memory"
        raise DiffctlError(f"{found}, and {format_bytes(free)} are free: score fewer images, or an npz file")
    return np.empty(shape, np.uint8)


def _check_pair(sample: ImageStore, real: ImageStore, against: Path) -> None:
    """Raise a DiffctlError unless both sets have two images, and images of one size."""
    for store in (sample, real):
        if len(store) < MIN_IMAGES:
            raise DiffctlError(f"scores need at least {MIN_IMAGES} images, and {store.path} has {len(store)}")
    if sample.images.shape[1:3] != real.images.shape[1:3]:
        sizes = [format_size(store.images.shape[1:3]) for store in (sample, real)]
        found = f"the images in {sample.path} are {sizes[0]} and those in {against} {sizes[1]}"
        raise DiffctlError(f"{found}: resize them like the reference, since resizing changes every score")


def score_images(
    inputs: ScoringInputs, section: EvaluateConfig, progress: Progress | None = None
) -> dict[str, Any]:
    """Score the sample against the real images. Return `images`, `reference`, `scores` and `card`.

    Features come from data/reference if it fits, then from the feature cache; only the rest is extracted.
    `progress` receives (done, total) of the images that are extracted.
    """
    _check_likelihood(section, inputs.heldout is not None, inputs.against)
    sample, loaded = inputs.sample, space_extractor(section.spaces[0])
    reference: Reference | None = None
    real = [inputs.real]
    if inputs.heldout is not None:
        real.append(inputs.heldout)
        reference = matching_reference(REFERENCE, loaded, inputs.split, inputs.against)
    stores = [sample] if reference else [sample, *real]
    features, *of_real = cached_features(loaded, stores, section.batch_size, progress)
    scorer = Scorer(reference or make_reference_of(loaded, real, of_real), section, loaded.device)
    described = {"images": _described(sample), **shared_values(scorer, len(sample))}
    return {**described, **score(features, sample, scorer)}


def score_against_statistics(
    sample: ImageStore,
    published: PublishedStatistics,
    images: ImageStore | None,
    section: EvaluateConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the sample against published statistics. Return the keys of `score_images` and `not_scored`.

    The statistics give the Fréchet distance. `images`, the real images of the same file if it has some, give
    the other scores; this is how OpenAI's evaluator computes precision and recall. `not_scored` lists the
    missing scores and the reason.
    """
    _check_likelihood(section, False, Path(published.facts["name"]))
    spec, loaded = published.spec, space_extractor(section.spaces[0])
    real = [] if images is None else [images]
    features, *of_real = cached_features(loaded, [sample, *real], section.batch_size, progress)
    sampling, reference = sample.meta.get("card", {}), {**published.facts, "features": spec.features}
    card = statistics_card(sampling, len(sample), published.facts, spec, loaded.weights_sha256)
    card |= plugin_card("extractor_plugins", extraction_code(spec))
    scores = _distance_scores(features.features, published)
    if images is not None:
        reference |= {"images": len(images), "images_digest": images.digest}
        scorer = Scorer(make_reference_of(loaded, real, of_real), section, loaded.device)
        scores |= scorer.scores_without_distance(features)
        card |= neighbour_card(len(sample), len(images), scorer.limits)
    return {
        "images": _described(sample),
        "diffctl": VERSION,
        "extractor": spec.name,
        "reference": reference,
        "intervals": {"confidence": CONFIDENCE},
        "scores": scores,
        "not_scored": missing_scores(spec, bool(real)),
        "card": card,
    }


def _check_likelihood(section: EvaluateConfig, has_splits: bool, against: Path) -> None:
    """Raise a UsageError if FLD, which needs two splits of real images, is required of one."""
    if section.feature_likelihood and not has_splits:
        found = f"feature_likelihood needs training and test images, and {printable(against)} has no splits"
        raise UsageError(f"{found}: give prepared data")


@exact_float32()
def _distance_scores(features: FeatureArray, published: PublishedStatistics) -> dict[str, float]:
    """Return the distance, its interval and its limit for N → ∞, by name."""
    name = published.spec.distance
    limit, errors = limit_and_errors(features, published, len(features) >= MIN_FOR_INTERVAL)
    scores = {name: published.distance(features), published.spec.limit: limit}
    if errors is None:
        return scores
    low, high = interval(scores[name], float(np.linalg.norm(errors)), positive=True)
    return scores | {f"{name}_low": low, f"{name}_high": high}


def _described(sample: ImageStore) -> dict[str, Any]:
    return {"path": str(sample.path), "digest": sample.digest, "count": len(sample)}
