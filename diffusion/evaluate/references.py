"""Making a reference, by its stage or for the scores of a training. An interrupted extraction resumes."""

from collections.abc import Sequence
from pathlib import Path

from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.feature_cache import cached_features
from diffusion.evaluate.features.extractors import Extractor, Progress, space_extractor
from diffusion.evaluate.features.reference_features import (
    Reference,
    make_reference_of,
    matching_reference,
    open_reference,
    reference_splits,
    write_reference,
)
from diffusion.system.files import atomic_folder


def make_reference(
    section: EvaluateConfig, prepared: Path, out: Path, progress: Progress | None = None
) -> None:
    """Write the folder `out` with the features of both splits, in each space.

    All weights are loaded first. Cached features are read, the others extracted and cached. `progress`
    receives (done, total) of the images to extract; the total grows with each space.
    """
    extractors = [space_extractor(space) for space in section.spaces]
    stores = reference_splits(prepared, section.reference, section.reference_images)
    before = extracted = 0

    def show(done: int, total: int) -> None:
        nonlocal extracted
        extracted = before + done
        if progress is not None:
            progress(extracted, before + total)

    with atomic_folder(out) as folder:
        for number, extractor in enumerate(extractors):
            features = cached_features(extractor, stores, section.batch_size, show)
            before = extracted
            reference = make_reference_of(extractor, stores, features)
            write_reference(folder / extractor.spec.name if number else folder, reference)


def find_or_make_reference(
    section: EvaluateConfig,
    extractor: Extractor,
    prepared: Path,
    places: Sequence[Path],
    progress: Progress | None = None,
) -> Reference:
    """Return the reference from the first folder that has it, else make it in the last folder."""
    for place in places:
        found = matching_reference(place, extractor, section.reference, prepared, section.reference_images)
        if found is not None:
            return found
    make_reference(section.model_copy(update={"extra_extractors": ()}), prepared, places[-1], progress)
    return open_reference(places[-1], extractor, section.reference, prepared, section.reference_images)
