"""scikit-learn's handwritten digits: 1,797 greyscale images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998)."""

import hashlib
from typing import Self

import numpy as np
from pydantic import model_validator

from diffusion.data.data_config import DataConfig
from diffusion.data.source import ArrayReader, DatasetInfo, RawData, Split, hold_out
from diffusion.downloads.fetch import OnProgress

COUNT = 1797
HELD_OUT = 500  # the size of a sweep's cell, so that scores and their floor have equal N
SHAPE = (8, 8, 1)


class DigitsConfig(DataConfig):
    """No `path`: the set is part of scikit-learn."""

    @model_validator(mode="after")
    def _without_path(self) -> Self:
        if self.path is not None:
            raise ValueError("path: digits come with scikit-learn and need no folder")
        return self


class Digits:
    """Digits of scikit-learn, without any download. Their 17 levels are scaled to 0…255."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def info(self) -> DatasetInfo:
        """Return the set's size; it is always available."""
        return DatasetInfo(COUNT, SHAPE, 10)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open a stratified split with a fixed seed: 1,297 training images, 500 test images."""
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        images = np.round(levels.reshape(-1, *SHAPE) * (255 / 16)).astype(np.uint8)
        labels = labels.astype(np.int64)
        parts = hold_out(labels, len(labels), HELD_OUT, seed=0)
        train, test = (Split(ArrayReader(images, rows), labels[rows]) for rows in parts)
        sources = {"digits": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()}
        return RawData(tuple("0123456789"), SHAPE, train, test, sources)
