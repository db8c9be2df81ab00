"""Figures published in papers, each with its protocol, as YAML files.

Those of PAPERS are shipped; users can write their own. A protocol uses the fields of a score's card, so that
it can be compared with one. Fields that the paper does not state are left out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from diffusion.images.store_meta import CardValue
from diffusion.protocol.card import (
    NETWORK_DIGESTS,
    SHARES,
    Card,
    Limits,
    protocol_card,
    short_text,
    statistics_card,
)
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import settings_card
from diffusion.protocol.scores_document import CellScores
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError, printable
from diffusion.system.files import read_regular_text
from diffusion.system.params import YamlRefusal, parse_yaml
from diffusion.system.section import PositiveInt, Section, ShortText, brief, validate

PAPERS = {
    "adm": "Dhariwal & Nichol 2021: ImageNet at 64×64, by FID, precision and recall",
    "ddim": "Song, Meng & Ermon 2021: CIFAR-10 by steps and η, by FID",
    "edm": "Karras et al. 2022: CIFAR-10 and ImageNet at 64×64, by FID",
}

MAX_BYTES = 1 << 20
FROM_SAMPLING = {
    *(*NETWORK_DIGESTS, "ema", "precision", "timesteps"),
    *("sampling_torch", "sampling_plugins"),
}

Stated = Annotated[dict[ShortText, CardValue], Field(max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=300)]


class Figure(Section):
    """A published `value` of the score `metric`, its place in the paper, and its protocol.

    `protocol` extends the paper's. Reports on `datasets` show the figure, by default those on the data set
    of its protocol.
    """

    name: Text
    where: Text
    metric: ShortText
    value: Annotated[float, Field(ge=-1e6, le=1e6)]
    protocol: Stated = Field(default_factory=dict)
    datasets: Annotated[list[ShortText], Field(max_length=20)] | None = None

    @model_validator(mode="after")
    def _metric_is_a_score(self) -> Self:
        if self.metric not in known_scores():
            raise ValueError(f"metric: there is no score {brief(self.metric)}, such as fid")
        return self


class Paper(Section):
    """A paper, the common protocol of its figures, and the figures.

    Each figure is the minimum of `least_of` runs.
    """

    title: Text
    source: Text
    note: Annotated[str, Field(max_length=300)] = ""
    least_of: PositiveInt = 1
    protocol: Stated = Field(default_factory=dict)
    figures: Annotated[list[Figure], Field(min_length=1, max_length=500)]

    @model_validator(mode="after")
    def _protocols_are_of_cards(self) -> Self:
        for stated in (self.protocol, *(figure.protocol for figure in self.figures)):
            if unknown := sorted(stated.keys() - card_fields()):
                known = ", ".join(sorted(card_fields()))
                raise ValueError(f"protocol.{brief(unknown[0], str)}: cards have only {known}")
        return self

    def protocol_of(self, figure: Figure) -> dict[str, Any]:
        """Return the full protocol of a figure, by fields of a card, with the weights of its extractor."""
        stated = {**self.protocol, **figure.protocol}
        extractor = EXTRACTORS.get(str(stated.get("extractor")))
        weights = "" if extractor is None else extractor.weights.sha256
        return {"weights_sha256": weights, **stated} if weights else stated

    def datasets_of(self, figure: Figure) -> list[str]:
        """Return the data sets that have this figure in their reports."""
        data = self.protocol_of(figure).get("data")
        return figure.datasets or ([] if data is None else [str(data)])


def open_paper(name: str) -> Paper:
    """Open a shipped paper by name, or a file.

    UsageError if there is neither, and for a malformed file; DiffctlError for an unreadable file.
    """
    path = Path(__file__).with_name(f"{name}.yaml") if name in PAPERS else Path(name)
    if not path.exists():
        raise UsageError(f"no paper {printable(name)}: give one of {', '.join(PAPERS)}, or a YAML file")
    text = read_regular_text(path, MAX_BYTES)
    try:
        values = parse_yaml(text)
    except YamlRefusal as refusal:
        raise UsageError(f"{printable(path)} is not readable as YAML: {brief(refusal, str)}") from None
    return validate(Paper, values, f"{printable(path)} holds no published figures")


@cache
def card_fields() -> frozenset[str]:
    """Return the fields of cards."""
    reference = {"name": "", "image_size": 2, "weights_sha256": "", "reference_count": 2}
    facts = dict.fromkeys(("name", "sha256", "source"), "")
    spec = next(iter(EXTRACTORS.values()))
    settings = {**SampleSettings.model_fields, **settings_card(SampleSettings())}
    cards = protocol_card({}, 2, reference, spec, Limits(2, 2)) | statistics_card({}, 2, facts, spec, "")
    return frozenset({*FROM_SAMPLING, *settings, *cards})


@cache
def known_scores() -> frozenset[str]:
    """Return the names of all extractors' scores."""
    names: set[str | None] = set()
    for spec in EXTRACTORS.values():
        names |= {*spec.distances, spec.limit, spec.published, spec.score, *map(spec.named, (*SHARES, "fld"))}
    return frozenset(filter(None, names))


class PublishedDifference(NamedTuple):
    """A field that a paper states differently from a card; `here` is None if the card lacks it."""

    field: str
    paper: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.field} {_text(self.paper)} (here {_text(self.here)})"


@dataclass(frozen=True)
class FigureComparison:
    """A paper's figure, this project's value of the same score, and the protocol differences.

    `here` is None without such a score; `cell` names the cell of the value.
    """

    paper: Paper
    figure: Figure
    here: float | None
    differences: tuple[PublishedDifference, ...]
    cell: str | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether both are the same score by the same protocol, as far as the paper states it."""
        return self.here is not None and not self.differences

    def verdict(self, alike: Collection[PublishedDifference]) -> str:
        """Return "yes" if both are comparable, else "no" and the differences that are not in `alike`."""
        own = ", ".join(str(one) for one in self.differences if one not in alike)
        return "yes" if self.is_comparable else f"no: {own}" if own else "no"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.figure.name,
            "where": self.figure.where,
            "metric": self.figure.metric,
            "published": self.figure.value,
            "here": self.here,
            **({} if self.cell is None else {"cell": self.cell}),
            "comparable": self.is_comparable,
            "mismatches": [one._asdict() for one in self.differences],
        }


def differences(
    paper: Paper, figure: Figure, card: Card, aside: Collection[str] = ()
) -> list[PublishedDifference]:
    """Return the fields, except those in `aside`, that differ or are missing in the card.

    A minimum over several runs is never comparable with a single run, such as one of this project.
    """
    stated = paper.protocol_of(figure)
    found = [
        PublishedDifference(field, value, card.get(field))
        for field, value in stated.items()
        if field not in aside and card.get(field) != value
    ]
    return found + ([PublishedDifference("least of", paper.least_of, 1)] if paper.least_of > 1 else [])


class SpaceScores(NamedTuple):
    """The scores and the card of one feature space."""

    card: Card
    scores: Mapping[str, float]


def space_scores(cell: CellScores) -> list[SpaceScores]:
    """Return the scores of all feature spaces of a cell, the ranking one first."""
    return [SpaceScores(one.card, one.scores) for one in (cell, *cell.spaces.values())]


def with_score(metric: str, seen: Sequence[SpaceScores]) -> SpaceScores:
    """Return the feature space with this score, or the first one."""
    return next((one for one in seen if metric in one.scores), seen[0])


def compare_cells(
    paper: Paper, cells: Mapping[str, CellScores], aside: Collection[str] = ()
) -> list[FigureComparison]:
    """Compare the paper's figures with the cells of a sweep; see `compare_spaces`."""
    return compare_spaces(paper, {name: space_scores(cell) for name, cell in cells.items()}, aside)


def compare_spaces(
    paper: Paper, sets: Mapping[str | None, Sequence[SpaceScores]], aside: Collection[str] = ()
) -> list[FigureComparison]:
    """Compare each of the paper's figures with the set of images that differs in the fewest fields.

    `sets` has the feature spaces of each set. Fields in `aside` may differ.
    """
    found = []
    for figure in paper.figures:
        seen = {name: with_score(figure.metric, spaces) for name, spaces in sets.items()}
        differing = {name: tuple(differences(paper, figure, one.card, aside)) for name, one in seen.items()}
        name = min(differing, key=lambda name: len(differing[name]))
        here = seen[name].scores.get(figure.metric)
        found.append(FigureComparison(paper, figure, here, differing[name], name))
    return found


def shared_differences(found: Iterable[Sequence[PublishedDifference]]) -> list[PublishedDifference]:
    """Return the differences common to all of one or more figures."""
    first, *others = found
    return [one for one in first if all(one in other for other in others)]


def _text(value: Any) -> str:
    return "not stated" if value is None else f"{value:,}" if type(value) is int else short_text(value)
