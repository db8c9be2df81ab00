"""A sample of a set's images that shows whether another set contains them.

It has the smallest digests of the set, so that two samples choose the same images where both sets have them.
"""

from collections.abc import Iterable
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

IN_CODE_DIGEST = False  # diffusion/code_digest.py

SAMPLED = 4096  # images
DIGITS = 8  # hex digits of an image's digest
TAG_LENGTH = 256 * DIGITS  # characters of a sample's beginning that a tag of MLflow stores


def image_sample(digests: Iterable[NDArray[np.uint8]]) -> str:
    """Return the sample of a set, in hex, from arrays (n, ≥ 4) of the digests of its images."""
    heads = np.concatenate([np.ascontiguousarray(some[:, : DIGITS // 2]) for some in digests])
    return bytes(np.unique(heads.view(">u4"))[:SAMPLED].astype(">u4")).hex()


def contained_share(sample: str, larger: str) -> float | None:
    """Estimate which share of a set's images is in another one.

    `sample` is the beginning of the set's sample, `larger` the other's whole sample. None if samples do not
    show it, of a few images and a very large set.
    """
    first, second = wrap(sample, DIGITS), wrap(larger, DIGITS)
    end = second[-1] if len(second) == SAMPLED else "g"  # above it the second sample has no images
    tested = [digest for digest in first if digest <= end]
    return sum(digest in second for digest in tested) / len(tested) if tested else None
