"""scikit-learn's handwritten digits: 1,797 greyscale images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998)."""

import hashlib
from typing import Self

import numpy as np
from pydantic import model_validator

from diffusion.data.data_config import DataConfig
from diffusion.data.holdout import hold_out
from diffusion.data.source import ArrayReader, DatasetInfo, RawData, Split
from diffusion.downloads.fetch import OnProgress

COUNT = 1797
HELD_OUT = 500  # as many as a sweep's cell has, so that scores and their floor are at the same N
SHAPE = (8, 8, 1)


class DigitsConfig(DataConfig):
    """No `path`: the set is a part of scikit-learn."""

    @model_validator(mode="after")
    def _without_path(self) -> Self:
        if self.path is not None:
            raise ValueError("path: digits come with scikit-learn, so there is no folder to give")
        return self


class Digits:
    """The set comes with scikit-learn, so it needs no network. Its 17 levels are stretched to 0…255."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def info(self) -> DatasetInfo:
        """Always at hand."""
        return DatasetInfo(COUNT, SHAPE, 10)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """A stratified split with a fixed seed: 1,297 images to train on and 500 held out."""
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        images = np.round(levels.reshape(-1, *SHAPE) * (255 / 16)).astype(np.uint8)
        labels = labels.astype(np.int64)
        train, test = hold_out(labels, len(labels), HELD_OUT, seed=0)
        return RawData(
            classes=tuple(str(digit) for digit in range(10)),
            shape=SHAPE,
            train=Split(ArrayReader(images, train), labels[train]),
            test=Split(ArrayReader(images, test), labels[test]),
            sources={"digits": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()},
        )
