"""Extract features from images, in one loop over slices of a memory-mapped store."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion.evaluate.features.extractors import Extractor
from diffusion.images.pixels import to_nchw
from diffusion.images.store import Images
from diffusion.system.errors import DiffctlError

FeatureArray = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Features of N images, float32: `features` (N, D), and `logits` (N, K) if the extractor has any."""

    features: FeatureArray
    logits: FeatureArray | None = None

    def __len__(self) -> int:
        return len(self.features)


def extract(
    extractor: Extractor,
    images: Images,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    first: int = 0,
) -> Features:
    """Return the features of uint8 (N, H, W, C) images, in order. Greyscale is repeated to three channels.

    The batch size, None for one that suits the device, changes rounding only. `progress` receives the number
    of images done.

    Raises:
        DiffctlError: for other channels than 1 or 3, fewer than two images, and NaN or infinite features. The
            error names the image; `first` is the index of the first one.
    """
    if images.shape[3] not in (1, 3):
        raise DiffctlError(f"scores are for images with 1 or 3 channels, and these have {images.shape[3]}")
    if len(images) < 2:
        raise DiffctlError(f"scores need at least 2 images, and there are {len(images)}")
    batch_size = batch_size or extractor.batch_size
    filled: tuple[FeatureArray, ...] = ()
    for start in range(0, len(images), batch_size):
        if progress:
            progress(start)
        batch = to_nchw(images[start : start + batch_size]).expand(-1, 3, -1, -1)
        outputs = [part for part in extractor(batch) if part is not None]
        filled = filled or tuple(np.empty((len(images), *part.shape[1:]), np.float32) for part in outputs)
        for whole, part in zip(filled, outputs, strict=True):
            whole[start : start + len(batch)] = part.numpy()
    if progress:
        progress(len(images))
    _check_finite(filled, extractor.spec.name, first)
    return Features(*filled)


def _check_finite(filled: tuple[FeatureArray, ...], name: str, first: int) -> None:
    """Raise a DiffctlError with the image's index for NaN or infinite features or logits."""
    for part in filled:
        wrong = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(wrong):
            raise DiffctlError(
                f"the features of {name} of image {first + wrong[0]} are NaN or infinite, as are "
                f"those of {len(wrong)} of {len(part)} images: the extractor's weights or code are damaged"
            )


def offset_progress(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[..., None] | None:
    """Return the progress callback of a part after `before` images of `total`; its own total is ignored."""
    return None if progress is None else lambda done, *_: progress(before + done, total)
