"""What is scored against what, opened and checked before anything that computes is loaded: no torch here."""

from pathlib import Path
from typing import NamedTuple

from diffusion.evaluate.evaluate_config import OTHER_SPLIT
from diffusion.evaluate.open_images import IMAGES, is_prepared, open_images, streamed_npz
from diffusion.evaluate.statistics_file import has_array
from diffusion.images.store import ImageStore, open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.system.errors import DiffctlError

MIN_IMAGES = 2  # images that have a spread


class ScoringInputs(NamedTuple):
    """Images of one size: the sample, and the real ones, of which those held out make the floor.

    `against` and `split` say where the real ones come from; `heldout` is None unless that is a prepared set.
    """

    sample: ImageStore
    real: ImageStore
    heldout: ImageStore | None
    against: Path
    split: str


def open_inputs(path: Path, against: Path, split: str = "train") -> ScoringInputs:
    """Open both, a store, a folder of image files or an npz each; `against` may be a prepared data set.

    UsageError and DiffctlError as `open_images`; DiffctlError for images of two sizes and for fewer than two.
    """
    sample = open_sample(path)
    if is_prepared(against):
        real, heldout = (open_store(against / one, PreparedMeta) for one in (split, OTHER_SPLIT[split]))
    else:
        real, heldout = open_images(against), None
    for store in (real, heldout):
        if store is not None:
            _check_count(store.path, store)
    _check_size(sample, real, against)
    return ScoringInputs(sample, real, heldout, against, split)


def open_sample(path: Path) -> ImageStore:
    """The images to be scored; UsageError and DiffctlError as `open_images`, and for fewer than two."""
    sample = open_images(path)
    _check_count(path, sample)
    return sample


def images_in_statistics(statistics: Path, sample: ImageStore) -> ImageStore | None:
    """The real images that lie in a file beside its statistics, read as they are used; None for none.

    DiffctlError for what is no images, for fewer than two, and for those of another size than the sample's.
    """
    if not has_array(statistics, IMAGES):
        return None
    real = streamed_npz(statistics)
    _check_count(statistics, real)
    _check_size(sample, real, statistics)
    return real


def _check_size(sample: ImageStore, real: ImageStore, against: Path) -> None:
    if sample.images.shape[1:3] != real.images.shape[1:3]:
        sizes = ["×".join(map(str, store.images.shape[1:3])) for store in (sample, real)]
        raise DiffctlError(
            f"the images in {sample.path} are {sizes[0]} and those in {against} {sizes[1]}: "
            f"make them the way the reference was made, since resizing moves every score"
        )


def _check_count(path: Path, store: ImageStore) -> None:
    if len(store) < MIN_IMAGES:
        raise DiffctlError(f"scores need at least {MIN_IMAGES} images, and {path} has {len(store)}")
