"""metrics/scores.json: the scores of a sweep with their errors and cards, and the cells that they select."""

import base64
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic_core import to_json

from diffusion.images.image_size import ImageSize
from diffusion.images.store_meta import CardValue, Training
from diffusion.protocol.card import EXTRACTOR_FIELDS, GROUPS, STATISTICS_FIELDS, SUBSETS, differing_fields
from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES, ExtractorSpec
from diffusion.protocol.grid import Cell
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.checksums import JsonObject, parse_json, read_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.system.registry import check_name
from diffusion.system.section import PositiveInt, Section, brief

MAX_SCORE = 1e15
ScoreNumber = Annotated[StrictInt | StrictFloat, Field(ge=-MAX_SCORE, le=MAX_SCORE)]


def pack(errors: Iterable[float]) -> list[str]:
    """Return errors as lines of float32 in base64."""
    return textwrap.wrap(base64.b64encode(np.array([*errors], "<f4").tobytes()).decode(), width=100)


def unpack(lines: Sequence[str]) -> NDArray[np.float32]:
    """Return the errors in these lines; ValueError unless they are float32 in base64, at most MAX_SCORE."""
    errors = np.frombuffer(base64.b64decode("".join(lines), validate=True), "<f4")
    if not (np.abs(errors) <= MAX_SCORE).all():  # a comparison with NaN is false
        raise ValueError("one of the numbers is too large or not finite")
    return errors


class ImageScores(Section):
    """The scores of one set of images by name, their card and, if known, scores by class.

    `errors` has, packed, the contributions of groups of images and random subsets to the error of both
    distances; it is empty if scores have no intervals. Every set has the same number of them, so that those
    of two sets correspond.
    """

    scores: dict[str, ScoreNumber]
    card: Annotated[dict[str, CardValue], Field(max_length=200)]
    errors: dict[str, list[str]] = Field(default_factory=dict)
    classes: dict[str, dict[str, ScoreNumber]] = Field(default_factory=dict)

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor of the scores."""
        return EXTRACTORS[str(self.card["extractor"])]

    @property
    def num_images(self) -> int:
        """The number of scored images."""
        return int(self.card["num_images"] or 0)

    @model_validator(mode="after")
    def _check_card(self) -> Self:
        extractor, count = self.card.get("extractor"), self.card.get("num_images")
        if extractor not in EXTRACTORS:
            raise ValueError(f"card.extractor: there is no {brief(extractor)}")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"card.num_images is {brief(count)}")
        return self

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        spec, has = self.spec, self.scores.keys()
        needed = {spec.distance, spec.kernel_distance}
        needed |= {f"{name.removesuffix('_low')}_high" for name in has if name.endswith("_low")}
        needed |= {"floor", "excess"} if has & {"floor", "excess"} else set()
        needed |= {"memorisation_std"} if "memorisation" in has else set()
        if missing := sorted(needed - has):
            raise ValueError(f"there is no score {missing[0]}")
        if spec.published in has and not isinstance(self.card.get("statistics_sha256"), str):
            raise ValueError(f"{spec.published} is against statistics, and card.statistics_sha256 names none")
        for name, scores in self.classes.items():
            if spec.distance not in scores:
                raise ValueError(f"class {brief(name)} has no score {spec.distance}")
        sizes = {spec.distance: GROUPS, spec.kernel_distance: GROUPS + SUBSETS, spec.published: GROUPS}
        wanted = {name: size for name, size in sizes.items() if f"{name}_low" in has}
        found = {name: len(unpack(lines)) for name, lines in self.errors.items()}
        if found != wanted:
            raise ValueError(f"errors holds numbers of {brief(found)}, and the intervals are of {wanted}")
        return self


class CellScores(ImageScores, Cell):
    """A cell's values on axes that vary, and scores; those of further extractors in `spaces` by name."""

    spaces: Annotated[dict[str, ImageScores], Field(max_length=MAX_SPACES)] = Field(default_factory=dict)

    @property
    def all_scores(self) -> dict[str, float]:
        """The scores of every extractor; those of further ones have its name."""
        further = {
            seen.spec.qualified(name): value
            for seen in self.spaces.values()
            for name, value in seen.scores.items()
        }
        return {**self.scores, **further}

    @property
    def nfe(self) -> int:
        """How often the network saw an image, for one that was made."""
        return int(self.card["nfe"] or 0)

    @model_validator(mode="after")
    def _check_cell(self) -> Self:
        if not isinstance(self.card.get("data"), str):
            raise ValueError("card.data does not name the data")
        if type(self.card.get("nfe")) is not int or self.nfe < 1:
            raise ValueError(f"card.nfe is {brief(self.card.get('nfe'))}")
        for name, seen in self.spaces.items():
            if seen.card["extractor"] != name or name == self.card["extractor"]:
                raise ValueError(f"spaces has {brief(name)} with the scores of {seen.spec.name}")
            if wrong := differing_fields([self.card, seen.card], (*EXTRACTOR_FIELDS, *STATISTICS_FIELDS)):
                raise ValueError(f"spaces.{name}.card is of another protocol: {', '.join(wrong)} differs")
        return self


class ScoredReference(Section):
    """The reference of scores: its images, its extractor, and the held-out images if there are any.

    `floor` has the scores of held-out real images and their number.
    """

    evaluation: int
    extractor: str
    weights_sha256: str
    dtype: str
    name: str
    image_size: ImageSize
    reference_split: str
    reference_digest: str
    reference_count: PositiveInt
    heldout_split: str | None = None
    heldout_digest: str | None = None
    heldout_count: PositiveInt | None = None
    floor: dict[str, StrictBool | ScoreNumber] = Field(default_factory=dict)

    @property
    def images(self) -> dict[str, Any]:
        """The facts on the images, without those on the extractor."""
        facts = self.model_dump(exclude={"evaluation", "extractor", "weights_sha256", "dtype", "floor"})
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

    `training` is the model's, if it was trained here. `diffctl` is the version that scored the cells, empty
    before 0.2.0; no fingerprint contains it. `best` is the best cell, `front` the best cell for each
    budget, the cheapest first. `spaces` has the references of further extractors, by their
    names; every cell has scores of each. `protocol` is the name of a paper's protocol to compare with.
    """

    training: Training | None = None
    protocol: Annotated[str, AfterValidator(partial(check_name, registry=PROTOCOLS))] | None = None
    diffctl: Annotated[str, Field(max_length=100)] = ""
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
    def _check_cells(self) -> Self:
        for name, cell in self.cells.items():
            if name != cell.name:
                raise ValueError(f"the cell {brief(name)} has the values of {cell.name}")
            if cell.card["extractor"] != self.extractor:
                raise ValueError(f"cell {name} was not scored by {brief(self.extractor)}")
            if wrong := cell.spaces.keys() ^ self.spaces.keys():
                raise ValueError(f"spaces: {brief(min(wrong))} is not in both cell {name} and the document")
        for field, chosen in [("best", self.best), *(("front", one) for one in self.front)]:
            found = self.cells.get(chosen.cell)
            if found is None:
                raise ValueError(f"{field} is {brief(chosen.cell)}, which is no cell here")
            if found.scores.get(chosen.metric) != chosen.value:
                raise ValueError(f"{field} has another {brief(chosen.metric)} than its cell {chosen.cell}")
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        for name, seen in {self.extractor: self.reference, **self.spaces}.items():
            if name not in EXTRACTORS or seen.extractor != name:
                raise ValueError(f"{brief(name)} has the reference of {brief(seen.extractor)}")
            if seen.images != self.reference.images:
                raise ValueError(f"spaces.{name} is of other images than the reference")
            spec = EXTRACTORS[name]
            needed = {"num_images", "extrapolated", spec.distance, spec.kernel_distance}
            missing = sorted(needed - seen.floor.keys()) or ["held-out images"] * (not seen.heldout_count)
            if seen.floor and missing:
                raise ValueError(f"the floor of {name} has no {missing[0]}")
        return self


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
        return parse_json(to_json(read_json(path, JsonObject)), ScoresDocument, str(path))
    except FileNotFoundError:
        raise UsageError(f"no scores at {path}: {again}") from None
    except DiffctlError as error:
        raise DiffctlError(f"{error}: {again}") from None
