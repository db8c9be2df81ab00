"""Every data set by its name in params.yaml."""

from typing import Protocol

from diffusion.config import DataConfig
from diffusion.data.source import RawData
from diffusion.data.sources.digits import Digits
from diffusion.data.sources.fashion_mnist import FashionMnist


class Source(Protocol):
    """One data set: raw files in, images and labels out."""

    def open(self, config: DataConfig) -> RawData:
        """Find or fetch the raw files; DiffctlError says what is missing and where to put it."""
        ...


SOURCES: dict[str, Source] = {"digits": Digits(), "fashion-mnist": FashionMnist()}
