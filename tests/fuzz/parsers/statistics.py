"""Published statistics of features: a mean and a covariance, in an npz or a pickle."""

import io
import pickle
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from diffusion.evaluate.published import is_statistics, open_statistics
from diffusion.protocol.extractors import EXTRACTORS
from tests.fuzz.parsers.npz import mutate_entry, mutate_header

NAME = "statistics"
EXTRACTOR, SIZE = "effnet-lite0-64", 3  # so few features that a seed is small


@cache
def seeds() -> list[bytes]:
    """The forms of OpenAI, EDM and EDM2."""
    arrays = {"mu": np.arange(SIZE, dtype=np.float64), "sigma": np.eye(SIZE)}
    others = {"mu_s": np.zeros(2), "sigma_s": np.eye(2), "arr_0": np.zeros((1, 2, 2, 3), np.uint8)}
    packed = [_packed(save, one) for save, one in ((np.savez, {**arrays, **others}), (np.savez, arrays))]
    held = {"num_images": 5, EXTRACTORS[EXTRACTOR].distance: arrays}
    return [*packed, *(pickle.dumps(held, protocol) for protocol in (2, 4, 5))]


def _packed(save, arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


MUTATORS = (mutate_header, mutate_entry)


@contextmanager
def few_features():
    """The extractor with so few features."""
    whole = EXTRACTORS[EXTRACTOR]
    EXTRACTORS[EXTRACTOR] = replace(whole, features=SIZE)
    try:
        yield
    finally:
        EXTRACTORS[EXTRACTOR] = whole


def parse(path: Path) -> None:
    """Read it as the statistics of that extractor."""
    is_statistics(path)
    with few_features():
        found = open_statistics(path, EXTRACTOR)
    assert np.isfinite(found.root).all()
    assert found.root.shape == found.covariance.shape == (SIZE, SIZE)
