"""The section `evaluate` of params.yaml."""

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.limits import MAX_NEIGHBOURS
from diffusion.system.references import check_name
from diffusion.system.section import BatchSize, FilePath, NotBool, Section

OTHER_SPLIT = {"train": "test", "test": "train"}


ExtractorName = Annotated[str, AfterValidator(partial(check_name, registry=EXTRACTORS))]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


Neighbours = Annotated[int, Field(gt=0, le=MAX_NEIGHBOURS), NotBool]


class StatisticsFile(Section):
    """Published statistics of real images: the `file`, and its `sha256`, by which a changed one is seen."""

    file: FilePath
    sha256: Sha256


class Space(Section):
    """A feature space: its `extractor`, a name of EXTRACTORS, and the file of its weights.

    `weights` is for one that does not bring its own; None looks in torch's hub cache and downloads it.
    `weights_sha256` is for a file that is not the published one, which cards then tell. `statistics` are of
    real images in this space: the distance to them stands beside the one to the reference.
    """

    extractor: ExtractorName
    weights: FilePath | None = None
    weights_sha256: Sha256 | None = None
    statistics: StatisticsFile | None = None


def _by_name(value: Any) -> Any:
    return {"extractor": value} if isinstance(value, str) else value


_NamedSpace = Annotated[Space, BeforeValidator(_by_name)]


class EvaluateConfig(Section):
    """Scores against the prepared data's `reference` split, by features of `extractor`, a name of EXTRACTORS.

    `weights`, `weights_sha256` and `statistics` are as in an entry of `also`. `also` are further ones, each a
    name or a mapping with its own weights, whose scores stand beside the first one's, which alone ranks.
    `batch_size` images are seen at a time, None as suits the device. `intervals` says whether scores come
    with confidence intervals. At most `prc_images` images of each set are held against each other for
    precision, recall and memorisation: every pair of them, hence 100,000 at most. `prc_samples` is the limit
    for the samples where it is another one. `protocol` names a paper's, of PROTOCOLS: it sets nothing, and
    `diffctl check` and the report say where this run departs from it.
    """

    extractor: ExtractorName = "effnet-lite0-64"
    reference: Literal["train", "test"] = "train"
    weights: FilePath | None = None
    weights_sha256: Sha256 | None = None
    statistics: StatisticsFile | None = None
    also: Annotated[tuple[_NamedSpace, ...], Field(max_length=MAX_SPACES)] = ()
    batch_size: BatchSize | None = None
    intervals: bool = True
    protocol: Annotated[str, AfterValidator(partial(check_name, registry=PROTOCOLS))] | None = None
    prc_images: Neighbours = 10_000
    prc_samples: Neighbours | None = None

    @property
    def spaces(self) -> tuple[Space, ...]:
        """All feature spaces, the one that ranks first."""
        shared = {field: getattr(self, field) for field in Space.model_fields}
        return (Space(**shared), *self.also)

    @model_validator(mode="after")
    def _each_extractor_once(self) -> Self:
        seen = {self.extractor}
        for space in self.also:
            if space.extractor in seen:
                raise ValueError(f"also names {space.extractor}, which is an extractor here already")
            seen.add(space.extractor)
        return self
