"""metrics/scores.json: the scores of a sweep, their reference, and the cells that they select."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PositiveInt, StrictBool, StrictFloat, model_validator
from pydantic_core import to_json

from diffusion.images.store_meta import Training
from diffusion.protocol.card import ReferenceFacts
from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES, ExtractorSpec
from diffusion.protocol.grid import Cell
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.scores import MAX_SCORE, CellScores, ScoreNumber
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.system.json_files import JsonObject, parse_json, read_json
from diffusion.system.references import check_name
from diffusion.system.renamed import translate
from diffusion.system.section import Section, brief


class ScoredReference(ReferenceFacts):
    """The reference of scores; `floor` has the scores of held-out real images and their number."""

    floor: dict[str, StrictBool | ScoreNumber] = Field(default_factory=dict)

    @property
    def images(self) -> dict[str, Any]:
        """The facts on the images, without those on the extractor."""
        facts = self.model_dump(exclude={"extractor", "weights_sha256", "dtype", "floor"})
        return {**facts, "floor": [self.floor.get(name) for name in ("num_images", "extrapolated")]}


class Intervals(Section):
    """The confidence level of the intervals."""

    confidence: Annotated[float, Field(gt=0, lt=1)]


class SelectedCell(Section):
    """The cell with the least score of several, and the bias of that score by selection.

    `value` is the cell's score named `metric`, the least `of` this number of cells. `optimism` is by how much
    it is too low on average, None if scores have no errors.
    """

    cell: str
    metric: str
    value: ScoreNumber
    of: PositiveInt
    optimism: Annotated[StrictFloat, Field(ge=0, le=MAX_SCORE)] | None = None


class FrontCell(SelectedCell):
    """The best of the cells with at most this NFE."""

    nfe: PositiveInt


class ScoresDocument(Section):
    """The scores of a sweep by the names of its cells, of one extractor against one reference.

    `training` is the model's, if it was trained here. `best` is the best cell, `front` the best cell for each
    budget, the cheapest first. `spaces` has the references of further extractors, by their
    names; every cell has scores of each. `protocol` is the name of a paper's protocol to compare with.
    """

    training: Training | None = None
    protocol: Annotated[str, AfterValidator(partial(check_name, registry=PROTOCOLS))] | None = None
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
    def _check_selection(self) -> Self:
        for field, chosen in [("best", self.best), *(("front", one) for one in self.front)]:
            cell = self.cells.get(chosen.cell)
            if cell is None:
                raise ValueError(f"{field} is {brief(chosen.cell)}, which is no cell here")
            if cell.scores.get(chosen.metric) != chosen.value:
                raise ValueError(f"{field} has another {brief(chosen.metric)} than its cell {chosen.cell}")
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        _check_floor(self.reference, self.spec, "reference")
        for name, seen in self.spaces.items():
            if name not in EXTRACTORS or seen.extractor != name:
                raise ValueError(f"spaces has {brief(name)} with the reference of {brief(seen.extractor)}")
            if seen.images != self.reference.images:
                raise ValueError(f"spaces.{name} is of other images than the reference")
            _check_floor(seen, EXTRACTORS[name], f"spaces.{name}")
        return self


def _check_floor(reference: ScoredReference, spec: ExtractorSpec, where: str) -> None:
    """Raise ValueError for a floor without the needed scores, or without held-out images."""
    needed = {"num_images", "extrapolated", spec.distance, spec.kernel_distance}
    if reference.floor and (missing := sorted(needed - reference.floor.keys())):
        raise ValueError(f"{where}.floor lacks {missing[0]}")
    if reference.floor and reference.heldout_count is None:
        raise ValueError(f"{where}.floor needs held-out images, and there are none")


def document_values(document: ScoresDocument) -> dict[str, Any]:
    """Return the document as plain values, without unset fields."""
    return document.model_dump(mode="json", exclude_unset=True)


def write_scores_document(path: Path, document: ScoresDocument) -> None:
    """Write metrics/scores.json; equal scores give equal bytes."""
    write_json(path, document_values(document))


def read_scores(path: Path) -> ScoresDocument:
    """Return the scores in a file; DiffctlError without valid scores."""
    again = "make them with `diffctl stage evaluate`"
    try:
        values = translate("scores", read_json(path, JsonObject))
        return parse_json(to_json(values), ScoresDocument, str(path))
    except FileNotFoundError:
        raise UsageError(f"no scores at {path}: {again}") from None
    except DiffctlError as error:
        raise DiffctlError(f"{error}: {again}") from None
