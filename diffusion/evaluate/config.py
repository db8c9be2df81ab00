"""The section `evaluate` of params.yaml."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from diffusion.protocol.extractors import EXTRACTORS
from diffusion.system.registry import known
from diffusion.system.section import BatchSize, FilePath, NotBool, Section

OTHER_SPLIT = {"train": "test", "test": "train"}


class EvaluateConfig(Section):
    """Scores against a split of the prepared data, by features of `extractor`, a name of EXTRACTORS.

    `weights` is the file of one that does not bring its own; None looks in torch's hub cache and downloads
    it. `weights_sha256` is for a file that is not the published one, which cards then tell.
    `batch_size` images are seen at a time, None as suits the device.
    `intervals` says whether scores come with confidence intervals. At most `prc_images` images of each set
    are held against each other for precision, recall and memorisation: every pair of them, hence 100,000 at
    most.
    """

    extractor: Annotated[str, AfterValidator(partial(known, registry=EXTRACTORS))] = "effnet-lite0-64"
    reference: Literal["train", "test"] = "train"
    weights: FilePath | None = None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    batch_size: BatchSize | None = None
    intervals: bool = True
    prc_images: Annotated[int, Field(gt=0, le=100_000), NotBool] = 10_000
