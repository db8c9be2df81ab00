"""Required content of a store's meta.json, one class per kind of image set."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from diffusion.images.image_size import ImageSize
from diffusion.system.section import Section

IN_CODE_DIGEST = False  # diffusion/code_digest.py

CardValue = StrictBool | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | StrictFloat | StrictStr | None
MAX_ANCESTORS = 100  # of the lineage, nearest first
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoreMeta(BaseModel):
    """Any store: number of images, and digest of images and labels. Further fields are allowed."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    count: NonNegativeInt
    digest: Digest
    classes: list[str] = Field(default_factory=list)


class PreparedMeta(StoreMeta):
    """A split of a prepared data set: its name, settings and raw files."""

    name: str
    split: Literal["train", "test"]
    classes: list[str]
    counts: list[NonNegativeInt]
    image_size: ImageSize
    channels: PositiveInt
    options: dict[str, Any]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _a_count_a_class(self) -> Self:
        if len(self.counts) != len(self.classes):
            raise ValueError(f"{len(self.counts)} counts are not those of {len(self.classes)} classes")
        return self


class Training(Section):
    """The training that produced a model: `setting` is a digest of its settings without the seed."""

    setting: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seed: NonNegativeInt


class Ancestor(Section):
    """A model that another one was initialised from: its digest, data and step."""

    sha256: Digest
    data: Annotated[str, Field(max_length=1000)]
    digest: Annotated[str, Field(max_length=1000)]
    step: Annotated[int, Field(ge=0, le=10**12)]


class CellMeta(StoreMeta):
    """A sampled cell: name, classes, protocol card, and its model's training.

    `training` is None for a model that was trained elsewhere. `lineage` are the models that it was
    initialised from, nearest first. `average_of` is the model_sha256 of the training's own model if the
    images are from another EMA of its weights.
    """

    name: str
    classes: list[str]
    card: dict[str, CardValue]
    training: Training | None = None
    average_of: Digest | None = None
    lineage: list[Ancestor] = Field(default_factory=list, max_length=MAX_ANCESTORS)
