"""The section `evaluate` of params.yaml."""

import operator
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from diffusion.protocol.card import SUBSET_SIZE, Limits
from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.limits import MAX_COUNT, MAX_NEIGHBOURS
from diffusion.system.registry import check_name
from diffusion.system.section import BatchSize, FilePath, NotBool, Section

IN_CODE_DIGEST = False  # diffusion/code_digest.py

OTHER_SPLIT = {"train": "test", "test": "train"}

ExtractorName = Annotated[str, AfterValidator(partial(check_name, registry=EXTRACTORS))]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Neighbours = Annotated[int, Field(gt=0, le=MAX_NEIGHBOURS), NotBool]


class StatisticsFile(Section):
    """Published statistics of real images: the `file`, and its `sha256`, which detects a changed file."""

    file: FilePath
    sha256: Sha256


class Space(Section):
    """A feature space: its `extractor`, a name of EXTRACTORS, and the file of its `weights`.

    Without `weights` they are bundled, or looked up in torch's hub cache and downloaded. `weights_sha256` is
    for another file than the published one; it is part of the card. `statistics` of real images add the
    distance to them to the scores.
    """

    extractor: ExtractorName
    weights: FilePath | None = None
    weights_sha256: Sha256 | None = None
    statistics: StatisticsFile | None = None


_NamedSpace = Annotated[
    Space, BeforeValidator(lambda value: {"extractor": value} if isinstance(value, str) else value)
]


class EvaluateConfig(Section):
    """Scores against the prepared data's `reference` split, by features of `extractor`.

    The fields `weights`, `weights_sha256` and `statistics` are as in an entry of `extra_extractors`, which
    lists further feature spaces, each a name or a mapping. Only the first space ranks cells.
    `reference_images` limits the real images of each split, for quick tests; None: all. `batch_size` is the
    number of images at a time; None: one that suits the device. `confidence_intervals` adds intervals to
    scores. Precision, recall, density and coverage compare at most `prc_images` images of each set, and
    memorisation as many samples with all real images; `prc_samples` is another limit for the samples.
    `feature_likelihood` adds the divergence that detects copies, in each space; it needs both splits.
    `kid_subset_size` is the largest number of images in a subset of the kernel distance.
    `protocol` names a paper's protocol. It changes no score; `diffctl check` and the report list the
    mismatches.
    """

    extractor: ExtractorName = "effnet-lite0-64"
    reference: Literal["train", "test"] = "train"
    reference_images: Annotated[int, Field(ge=2, le=MAX_COUNT), NotBool] | None = Field(
        default=None, exclude_if=partial(operator.is_, None)
    )
    weights: FilePath | None = None
    weights_sha256: Sha256 | None = None
    statistics: StatisticsFile | None = None
    extra_extractors: Annotated[tuple[_NamedSpace, ...], Field(max_length=MAX_SPACES)] = ()
    batch_size: BatchSize | None = None
    confidence_intervals: bool = True
    feature_likelihood: bool = False
    protocol: Annotated[str, AfterValidator(partial(check_name, registry=PROTOCOLS))] | None = None
    prc_images: Neighbours = 10_000
    prc_samples: Neighbours | None = None
    kid_subset_size: Annotated[int, Field(ge=2, le=MAX_NEIGHBOURS), NotBool] = SUBSET_SIZE

    @property
    def limits(self) -> Limits:
        """The largest numbers of images that are compared pairwise."""
        return Limits(self.prc_samples or self.prc_images, self.prc_images, self.kid_subset_size)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """All feature spaces; the first one ranks."""
        shared = {field: getattr(self, field) for field in Space.model_fields}
        return (Space(**shared), *self.extra_extractors)

    @model_validator(mode="after")
    def _each_extractor_once(self) -> Self:
        names = [space.extractor for space in self.spaces]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"extra_extractors lists {twice}, which is already an extractor")
        return self
