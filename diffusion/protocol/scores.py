"""What metrics/scores.json holds: scores of a sweep, their errors and cards, and what was chosen by them."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, StrictBool, StrictFloat, StrictInt, model_validator

from diffusion.images.store_meta import CardValue, Training
from diffusion.protocol.card import EXTRACTOR_FIELDS, STATISTICS_FIELDS, differing_fields
from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES, ExtractorSpec
from diffusion.protocol.float_codec import unpack
from diffusion.protocol.grid import Cell
from diffusion.protocol.metric_constants import GROUPS, SUBSETS
from diffusion.protocol.options import SamplingOption, fields_section
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.reference import ReferenceFacts
from diffusion.protocol.settings import AXES, OPTIONS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.system.json_files import read_json
from diffusion.system.section import Section, ShortText, brief

_MOST = 1e15
_Number = Annotated[StrictInt | StrictFloat, Field(ge=-_MOST, le=_MOST)]
_NEEDED = {"extractor": str, "num_images": int}  # of every card, by what the readers of scores make of it


class ImageScores(Section):
    """The scores of one set of images by name, their card and, where they are known, scores by class.

    `errors` holds, packed, what groups of images and random subsets add to the error of both distances: none
    where scores have no intervals. They are as many for every set, so that those of two belong together.
    """

    scores: dict[str, _Number]
    card: Annotated[dict[str, CardValue], Field(max_length=200)]
    errors: dict[str, list[str]] = Field(default_factory=dict)
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
        if spec.published in has and not isinstance(self.card.get("statistics_sha256"), str):
            raise ValueError(f"{spec.published} is against statistics, and card.statistics_sha256 names none")
        needed |= {"memorisation_std"} if "memorisation" in has else set()
        if missing := sorted(needed - has):
            raise ValueError(f"there is no score {missing[0]} beside the others")
        for name, scores in self.classes.items():
            if spec.distance not in scores:
                raise ValueError(f"class {brief(name)} has no score {spec.distance}")
        return self

    @model_validator(mode="after")
    def _errors_are_of_the_scores(self) -> Self:
        sizes = {self.spec.distance: GROUPS, self.spec.kernel_distance: GROUPS + SUBSETS}
        if self.spec.published in self.scores:
            sizes[self.spec.published] = GROUPS
        for name, lines in self.errors.items():
            if name not in sizes:
                raise ValueError(f"errors has {brief(name)}: they are of {', '.join(sizes)} alone")
            try:
                errors = unpack(lines)
            except ValueError as error:
                raise ValueError(f"errors.{name} cannot be unpacked: {error}") from None
            if len(errors) != sizes[name]:
                raise ValueError(f"errors.{name} holds {len(errors)} numbers, not {sizes[name]}")
            if max(map(abs, errors)) > _MOST:
                raise ValueError(
                    f"errors.{name} holds {max(map(abs, errors)):g}, which is no error of a score"
                )
        for name in sizes:
            if (name in self.errors) != (f"{name}_low" in self.scores):
                raise ValueError(f"{name} has one of its interval and its errors without the other")
        return self


def _axis_field(option: SamplingOption) -> tuple[Any, Any]:
    """Return the type and default of a cell's value on an axis."""
    stored = option.option.stored or (ShortText if option.option.choices else option.annotation)
    return (stored, ...) if option.option.axis == "required" else (stored | None, None)


_AxisValues: Any = fields_section("_AxisValues", Section, {name: _axis_field(OPTIONS[name]) for name in AXES})


class CellScores(ImageScores, _AxisValues):  # type: ignore[misc]
    """A cell's value on every axis that varies, and its scores.

    `spaces` has, by the names of further extractors, what those say of the same images.
    """

    spaces: Annotated[dict[str, ImageScores], Field(max_length=MAX_SPACES)] = Field(default_factory=dict)

    @property
    def all_scores(self) -> dict[str, float]:
        """The scores of every space; what bears no extractor's name gets that of a further one."""
        beside = {
            seen.spec.named_beside(name): value
            for seen in self.spaces.values()
            for name, value in seen.scores.items()
        }
        return {**self.scores, **beside}

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

    @model_validator(mode="after")
    def _spaces_are_of_the_same_images(self) -> Self:
        for name, seen in self.spaces.items():
            if seen.card["extractor"] != name or name == self.card["extractor"]:
                raise ValueError(f"spaces has {brief(name)} with the scores of {seen.spec.name}")
            if wrong := differing_fields([self.card, seen.card], (*EXTRACTOR_FIELDS, *STATISTICS_FIELDS)):
                raise ValueError(f"spaces.{name}.card is of another protocol: {', '.join(wrong)} differs")
        return self


class ScoredReference(ReferenceFacts):
    """The reference of some scores; `floor` is what held-out real images score, and of how many that is."""

    floor: dict[str, StrictBool | _Number] = Field(default_factory=dict)

    @property
    def images(self) -> dict[str, Any]:
        """What it says of the images, whatever saw them."""
        facts = self.model_dump(exclude={"extractor", "weights_sha256", "dtype", "floor"})
        return {**facts, "floor": [self.floor.get(name) for name in ("num_images", "extrapolated")]}


class Intervals(Section):
    """How the confidence intervals were made."""

    confidence: Annotated[float, Field(gt=0, lt=1)]


class SelectedCell(Section):
    """The cell that has the least score of several, and how much too low that is since chance chose too.

    `value` is the cell's score of the name `metric`, the least `of` so many; `optimism` is None where scores
    have no errors.
    """

    cell: str
    metric: str
    value: _Number
    of: PositiveInt
    optimism: Annotated[StrictFloat, Field(ge=0, le=_MOST)] | None = None


class FrontCell(SelectedCell):
    """The same of the cells that cost no more than this one."""

    evaluations: PositiveInt


class ScoresDocument(Section):
    """The scores of a sweep, cells by their names; all of one extractor against one reference.

    `training` is the model's, where that was trained here. `best` is the cell that ranks first, and `front`
    the one for each budget from the cheapest on. `spaces` has the references of further extractors, by their
    names, of which every cell has scores too. `protocol` names the paper's that it is meant to be by.
    """

    training: Training | None = None
    protocol: str | None = None
    extractor: str
    reference: ScoredReference
    spaces: Annotated[dict[str, ScoredReference], Field(max_length=MAX_SPACES)] = Field(default_factory=dict)
    intervals: Intervals | None = None
    best: SelectedCell
    front: Annotated[list[FrontCell], Field(min_length=1)]
    cells: Annotated[dict[str, CellScores], Field(min_length=1, max_length=100_000)]

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor that the scores are of."""
        return EXTRACTORS[self.extractor]

    @model_validator(mode="after")
    def _protocol_is_known(self) -> Self:
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: there is no {brief(self.protocol)}")
        return self

    @model_validator(mode="after")
    def _cells_bear_their_names(self) -> Self:
        for name, cell in self.cells.items():
            if name != Cell(**cell.axes).name:
                raise ValueError(f"the cell {brief(name)} has the values of {Cell(**cell.axes).name}")
            if cell.card["extractor"] != self.extractor:
                raise ValueError(f"cell {name} was not scored by {brief(self.extractor)}")
            if wrong := cell.spaces.keys() ^ self.spaces.keys():
                raise ValueError(f"spaces: {brief(min(wrong))} is not in both cell {name} and the document")
        return self

    @model_validator(mode="after")
    def _chosen_are_cells(self) -> Self:
        for field, chosen in [("best", self.best), *(("front", one) for one in self.front)]:
            cell = self.cells.get(chosen.cell)
            if cell is None:
                raise ValueError(f"{field} is {brief(chosen.cell)}, which is no cell here")
            if cell.scores.get(chosen.metric) != chosen.value:
                raise ValueError(f"{field} has another {brief(chosen.metric)} than its cell {chosen.cell}")
            if chosen.of > len(self.cells):
                raise ValueError(f"{field} is of {chosen.of} cells, and there are {len(self.cells)}")
        costs = [one.evaluations for one in self.front]
        if costs != [self.cells[one.cell].evaluations for one in self.front]:
            raise ValueError("front has other evaluations than its cells")
        if any(cost >= following for cost, following in pairwise(costs)):
            raise ValueError("front does not go from the cheapest cell on")
        if any(one.metric != self.spec.distance for one in self.front):
            raise ValueError(f"front was not chosen by {self.spec.distance}")
        return self

    @model_validator(mode="after")
    def _references_fit(self) -> Self:
        _refuse_unfit_floor(self.reference, self.spec, "reference")
        for name, seen in self.spaces.items():
            if name not in EXTRACTORS or seen.extractor != name:
                raise ValueError(f"spaces has {brief(name)} with the reference of {brief(seen.extractor)}")
            if seen.images != self.reference.images:
                raise ValueError(f"spaces.{name} is of other images than the reference")
            _refuse_unfit_floor(seen, EXTRACTORS[name], f"spaces.{name}")
        return self


def _refuse_unfit_floor(reference: ScoredReference, spec: ExtractorSpec, where: str) -> None:
    """ValueError for a floor that lacks what is read of it, or that has no images to be of."""
    needed = {"num_images", "extrapolated", spec.distance, spec.kernel_distance}
    if reference.floor and (missing := sorted(needed - reference.floor.keys())):
        raise ValueError(f"{where}.floor lacks {missing[0]}")
    if reference.floor and reference.heldout_count is None:
        raise ValueError(f"{where}.floor is of held-out images, and there are none")


def document_values(document: ScoresDocument) -> dict[str, Any]:
    """The document as plain values, what it does not say left out."""
    return document.model_dump(mode="json", exclude_unset=True)


def write_scores_document(path: Path, document: ScoresDocument) -> None:
    """Write metrics/scores.json: equal scores give equal bytes."""
    write_json(path, document_values(document))


def read_scores(path: Path) -> ScoresDocument:
    """The scores in a file; DiffctlError where there are none."""
    again = "make them with `diffctl stage evaluate`"
    try:
        return read_json(path, ScoresDocument, stored_as="scores")
    except FileNotFoundError:
        raise UsageError(f"no scores at {path}: {again}") from None
    except DiffctlError as error:
        raise DiffctlError(f"{error}: {again}") from None
