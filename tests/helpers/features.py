"""Made-up features of images."""

import numpy as np
from numpy.typing import NDArray


def normal(
    seed: int, count: int, dimension: int = 16, shift: float = 0.0, scale: float = 1.0
) -> NDArray[np.float32]:
    """Return Gaussian features (count, dimension) of mean `scale`·`shift` and deviation `scale`."""
    drawn = np.random.default_rng(seed).normal(size=(count, dimension))
    return (scale * (drawn + shift)).astype(np.float32)
