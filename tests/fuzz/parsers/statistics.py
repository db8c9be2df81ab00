"""Published statistics of features, a mean and a covariance in npz or pickle, with optional images."""

import io
import pickle
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from diffusion.evaluate.adhoc_inputs import IMAGES, mapped_npz
from diffusion.evaluate.statistics_file import has_array, is_statistics, open_statistics
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION_SPATIAL
from tests.fuzz.parsers.npz import mutate_entry, mutate_header

NAME = "statistics"
EXTRACTOR, SIZE = "effnet-lite0-64", 3  # so few features that a seed is small


@cache
def seeds() -> list[bytes]:
    """Return the formats of OpenAI, EDM and EDM2."""
    arrays = {"mu": np.arange(SIZE, dtype=np.float64), "sigma": np.eye(SIZE)}
    others = {"mu_s": np.zeros(SIZE), "sigma_s": np.eye(SIZE), "arr_0": np.zeros((1, 2, 2, 3), np.uint8)}
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
    """Reduce the extractors to a few features."""
    whole = {name: EXTRACTORS[name] for name in (EXTRACTOR, INCEPTION_SPATIAL.name)}
    EXTRACTORS.update({name: replace(spec, features=SIZE) for name, spec in whole.items()})
    try:
        yield
    finally:
        EXTRACTORS.update(whole)


def parse(path: Path) -> None:
    """Read the statistics of both extractors, and the images if there are any."""
    is_statistics(path)
    with few_features():
        names = [EXTRACTOR]
        if has_array(path, "mu_s"):
            names.append(INCEPTION_SPATIAL.name)
        for name in names:
            found = open_statistics(path, name)
            assert np.isfinite(found.root).all()
            assert found.root.shape == found.covariance.shape == (SIZE, SIZE)
    if has_array(path, IMAGES):
        images = mapped_npz(path).images
        assert images[0 : len(images)].shape == images.shape
