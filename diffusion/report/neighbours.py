"""The nearest training image to each sample, in pixels: does the model repeat what it saw?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.images.store import Images

TRAIN_BLOCK = 2048


class Neighbours(NamedTuple):
    """For each of N images: the row of the nearest training image, and the distance in grey levels.

    The distance is the root mean square over pixels and channels of the difference, 0 to 255.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest(images: Images, train: Images) -> Neighbours:
    """Nearest rows of `train` (M, H, W, C) for `images` (N, H, W, C); exact copies are at distance 0."""
    queries = _flat(images)
    best = np.full(len(queries), np.inf)
    rows = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(train), TRAIN_BLOCK):
        block = _flat(train[start : start + TRAIN_BLOCK])
        # ‖a − b‖² without the ‖a‖² that moves no minimum
        squared = (block**2).sum(axis=1) - 2 * queries @ block.T
        closest = squared.argmin(axis=1)
        values = squared[np.arange(len(queries)), closest]
        better = values < best
        best[better], rows[better] = values[better], start + closest[better]
    differences = images.astype(np.float64) - train[rows]
    return Neighbours(rows, np.sqrt((differences**2).mean(axis=(1, 2, 3))))


def _flat(images: Images) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32)
