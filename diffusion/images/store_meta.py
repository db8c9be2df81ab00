"""What a set of images must say of itself, by what it is: the classes of the stores' meta.json."""

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

CardValue = StrictBool | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | StrictFloat | StrictStr | None
MAX_ANCESTORS = 100  # that are named: the nearest
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoreMeta(BaseModel):
    """Of any store: how many images it has, and the digest of them and their labels. It may say more."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    count: NonNegativeInt
    digest: Digest
    classes: list[str] = Field(default_factory=list)


class PreparedMeta(StoreMeta):
    """Of a split of a prepared data set: what it is, and by which settings it was made of which raw files."""

    name: str
    split: Literal["train", "test"]
    classes: list[str]
    counts: list[NonNegativeInt]
    image_size: PositiveInt
    channels: PositiveInt
    options: dict[str, Any]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _a_count_a_class(self) -> Self:
        if len(self.counts) != len(self.classes):
            raise ValueError(f"{len(self.counts)} counts are not those of {len(self.classes)} classes")
        return self


class Training(BaseModel):
    """Which training a model is of: `setting` is a digest of all that decides it but its seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seed: NonNegativeInt


class Ancestor(BaseModel):
    """A model that another one was trained from: what cards know it by, what it had seen, and its step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Digest
    data: Annotated[str, Field(max_length=1000)]
    digest: Annotated[str, Field(max_length=1000)]
    step: Annotated[int, Field(ge=0, le=10**12)]


class CellMeta(StoreMeta):
    """Of a sampled cell: its name, its classes, the protocol card of its images, and their model's training.

    That is None of a model that was trained elsewhere. `lineage` are the models that it was trained from, the
    nearest first. `average_of` is the model_sha256 of the training's own model, where the images are by
    another average of its weights.
    """

    name: str
    classes: list[str]
    card: dict[str, CardValue]
    training: Training | None = None
    average_of: Digest | None = None
    lineage: list[Ancestor] = Field(default_factory=list, max_length=MAX_ANCESTORS)
