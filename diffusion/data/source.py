"""What a data set's source gives: raw files in, rows of uint8 images and labels out.

A source names its classes and opens its splits; it neither resizes nor stores. `prepare` reads the rows in
ranges, in several processes, and writes the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from diffusion.data.store import Images, Labels


@dataclass(frozen=True)
class Rows:
    """Consecutive images (n, H, W, C) uint8. A row in `bad` could not be read: its place holds zeros."""

    images: Images
    bad: Mapping[int, str] = field(default_factory=dict)  # row within this range: why


class Reader(Protocol):
    """Random access to the images of one split. It is pickled into worker processes, so it stays small."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`; a damaged image is reported in `bad`, never raised."""
        ...


@dataclass(frozen=True)
class Split:
    """One split: its images by row, and a label for each row (None when unlabelled)."""

    reader: Reader
    labels: Labels | None


@dataclass(frozen=True)
class RawData:
    """A data set as its source has it.

    `classes` are names in label order, empty when unlabelled. `sources` maps the name of every raw file to
    the SHA-256 of its content, so that a store can say what it was made of.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    sources: Mapping[str, str]


class ArrayReader:
    """A reader of images that fit in memory, taken in the order of `rows` where given."""

    def __init__(self, images: Images, rows: np.ndarray | None = None) -> None:
        self.images = images
        self.rows = np.arange(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of the chosen order."""
        return Rows(self.images[self.rows[start:stop]])
