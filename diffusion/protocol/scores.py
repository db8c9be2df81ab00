"""What metrics/scores.json holds: the scores of every cell of a sweep, each with its protocol card."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, StrictBool, StrictFloat, StrictInt, model_validator

from diffusion.images.meta import CardValue
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec
from diffusion.protocol.grid import AXES, Cell
from diffusion.protocol.samplers import Noise
from diffusion.system.documents import read_document
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.system.section import Section, brief

_Number = Annotated[StrictInt | StrictFloat, Field(ge=-1e15, le=1e15)]
_NEEDED = {"extractor": str, "num_images": int}  # of every card, by what the readers of scores make of it


class Scored(Section):
    """The scores of one set of images by name, their card and, where they are known, scores by class."""

    scores: dict[str, _Number]
    card: Annotated[dict[str, CardValue], Field(max_length=200)]
    classes: dict[str, dict[str, _Number]] = Field(default_factory=dict)

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor that the scores are of."""
        return EXTRACTORS[str(self.card["extractor"])]

    @property
    def num_images(self) -> int:
        """How many images were scored."""
        return int(self.card["num_images"] or 0)

    @model_validator(mode="after")
    def _card_says_of_what(self) -> Self:
        for field, kind in _NEEDED.items():
            if not isinstance(self.card.get(field), kind):
                raise ValueError(f"card.{field} is {brief(self.card.get(field))}: it must say that")
        if self.card["extractor"] not in EXTRACTORS:
            raise ValueError(f"card.extractor: there is no {brief(self.card['extractor'])}")
        if self.num_images < 1:
            raise ValueError(f"card.num_images is {self.num_images}")
        return self

    @model_validator(mode="after")
    def _scores_go_together(self) -> Self:
        spec, has = self.spec, self.scores.keys()
        needed = {spec.distance, spec.kernel_distance}
        needed |= {f"{name.removesuffix('_low')}_high" for name in has if name.endswith("_low")}
        needed |= {"excess"} if "floor" in has else {"floor"} if "excess" in has else set()
        needed |= {"memorisation_std"} if "memorisation" in has else set()
        if missing := sorted(needed - has):
            raise ValueError(f"there is no score {missing[0]} beside the others")
        for name, scores in self.classes.items():
            if spec.distance not in scores:
                raise ValueError(f"class {brief(name)} has no score {spec.distance}")
        return self


class CellScores(Scored):
    """A cell's value on every axis that it varies on, and its scores."""

    steps: PositiveInt
    eta: Annotated[float, Field(ge=0)]
    sampler: str | None = None
    noise: Noise | None = None
    spacing: str | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None

    @property
    def axes(self) -> dict[str, Any]:
        """The cell's values by axis, as `Cell.axes`."""
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}

    @property
    def evaluations(self) -> int:
        """How often the network saw an image, for one that was made."""
        return int(self.card["evaluations"] or 0)

    @model_validator(mode="after")
    def _card_says_what_it_cost(self) -> Self:
        if not isinstance(self.card.get("data"), str):
            raise ValueError("card.data does not name the data")
        if type(self.card.get("evaluations")) is not int or self.evaluations < 1:
            raise ValueError(f"card.evaluations is {brief(self.card.get('evaluations'))}")
        return self


class ReferenceFacts(Section):
    """What is said of a reference: its images, what saw them, and those held out where there are any."""

    evaluation: int
    extractor: str
    weights_sha256: str
    dtype: str
    name: str
    image_size: PositiveInt
    reference_split: str
    reference_digest: str
    reference_count: PositiveInt
    heldout_split: str | None = None
    heldout_digest: str | None = None
    heldout_count: PositiveInt | None = None


class ScoredReference(ReferenceFacts):
    """The reference of some scores; `floor` is what held-out real images score, and of how many that is."""

    floor: dict[str, StrictBool | _Number] = Field(default_factory=dict)


class Intervals(Section):
    """How the confidence intervals were made."""

    confidence: Annotated[float, Field(gt=0, lt=1)]
    resamples: PositiveInt


class ScoresDocument(Section):
    """The scores of a sweep, cells by their names; all of one extractor against one reference."""

    extractor: str
    reference: ScoredReference
    intervals: Intervals | None = None
    cells: Annotated[dict[str, CellScores], Field(min_length=1, max_length=100_000)]

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor that the scores are of."""
        return EXTRACTORS[self.extractor]

    @model_validator(mode="after")
    def _cells_bear_their_names(self) -> Self:
        for name, cell in self.cells.items():
            if name != Cell(**cell.axes).name:
                raise ValueError(f"the cell {brief(name)} has the values of {Cell(**cell.axes).name}")
            if cell.card["extractor"] != self.extractor:
                raise ValueError(f"cell {name} was not scored by {brief(self.extractor)}")
        return self

    @model_validator(mode="after")
    def _floor_is_of_the_same(self) -> Self:
        needed = {"num_images", "extrapolated", self.spec.distance, self.spec.kernel_distance}
        if self.reference.floor and (missing := sorted(needed - self.reference.floor.keys())):
            raise ValueError(f"reference.floor lacks {missing[0]}")
        if self.reference.floor and self.reference.heldout_count is None:
            raise ValueError("reference.floor is of held-out images, and there are none")
        return self


def as_values(document: ScoresDocument) -> dict[str, Any]:
    """The document as plain values, what it does not say left out."""
    return document.model_dump(mode="json", exclude_unset=True)


def write_document(path: Path, document: ScoresDocument) -> None:
    """Write metrics/scores.json: equal scores give equal bytes."""
    write_json(path, as_values(document))


def read_scores(path: Path) -> ScoresDocument:
    """The scores in a file; DiffctlError where there are none."""
    again = "make them with `diffctl stage evaluate`"
    try:
        return read_document(path, ScoresDocument)
    except FileNotFoundError:
        raise UsageError(f"no scores at {path}: {again}") from None
    except DiffctlError as error:
        raise DiffctlError(f"{error}: {again}") from None
