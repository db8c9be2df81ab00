"""The section `evaluate` of params.yaml."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from diffusion.section import PositiveInt, Section


class EvaluateConfig(Section):
    """Scores against a split of the prepared data, by features of `extractor`.

    `weights` is a file with Inception's weights; None looks in torch's hub cache and downloads them.
    `batch_size` images are seen at a time, None as suits the device.
    `bootstrap` resamples make the confidence intervals (0: none). At most `prc_images` images of each set are
    held against each other for precision, recall and memorisation.
    """

    extractor: Literal["effnet-lite0-64", "effnet-lite0-96", "inception-v3-compat"] = "effnet-lite0-64"
    reference: Literal["train", "test"] = "train"
    weights: Path | None = None
    batch_size: PositiveInt | None = None
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    prc_images: PositiveInt = 10_000
