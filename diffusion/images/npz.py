"""OpenAI's evaluator's format, which other tools read and write: arr_0 the images, arr_1 their labels."""

from collections.abc import Sequence
from typing import IO

import numpy as np

from diffusion.images.store import Images


def save_npz(file: IO[bytes], images: Images, labels: Sequence[int] | None) -> None:
    """Write images (N, H, W, C) uint8 and, where there are any, their labels as int64."""
    arrays = [images] if labels is None else [images, np.asarray(labels, dtype=np.int64)]
    np.savez(file, *arrays)
