"""Published figures beside one's own: where the protocols differ, the numbers are not comparable."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusion.papers.paper import Figure, Paper
from diffusion.protocol.card import Card
from diffusion.protocol.scores import CellScores

ONCE = 1  # how many runs a score of this project is of


class Difference(NamedTuple):
    """A field that a paper states otherwise than a card, and both values; `here` is None where it is open."""

    field: str
    paper: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.field} {_text(self.paper)} (here {_text(self.here)})"


@dataclass(frozen=True)
class FigureComparison:
    """A published figure, this project's value of the same score (None where it has none), and what differs.

    `cell` names the cell that the value is of, where there are several.
    """

    figure: Figure
    here: float | None
    differences: tuple[Difference, ...]
    cell: str | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether both are of one score, by a protocol that agrees in all that the paper states."""
        return self.here is not None and not self.differences

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        return {
            "name": self.figure.name,
            "where": self.figure.where,
            "metric": self.figure.metric,
            "published": self.figure.value,
            "here": self.here,
            **({} if self.cell is None else {"cell": self.cell}),
            "comparable": self.is_comparable,
            "departures": [one._asdict() for one in self.differences],
        }


def differences(paper: Paper, figure: Figure, card: Card, aside: Collection[str] = ()) -> list[Difference]:
    """The fields, but for those `aside`, that the paper states and the card has otherwise or not at all.

    A figure that is the least of several runs is none of one run: chance helped it.
    """
    stated = paper.protocol_of(figure)
    found = [
        Difference(field, value, card.get(field))
        for field, value in stated.items()
        if field not in aside and card.get(field) != value
    ]
    return found + ([Difference("least of", paper.least_of, ONCE)] if paper.least_of != ONCE else [])


class SpaceScores(NamedTuple):
    """What one extractor says of a set of images: its scores, and their card."""

    card: Card
    scores: Mapping[str, float]


def space_scores(cell: CellScores) -> list[SpaceScores]:
    """What every extractor says of a cell, the first one's first."""
    return [SpaceScores(one.card, one.scores) for one in (cell, *cell.spaces.values())]


def with_score(metric: str, seen: Sequence[SpaceScores]) -> SpaceScores:
    """That of the extractor that has this score; of the first one where none has it."""
    return next((one for one in seen if metric in one.scores), seen[0])


def compare_scores(paper: Paper, seen: Sequence[SpaceScores]) -> list[FigureComparison]:
    """Each of the paper's figures beside the scores of one set of images, of one or more extractors."""
    found = []
    for figure in paper.figures:
        card, scores = with_score(figure.metric, seen)
        found.append(
            FigureComparison(figure, scores.get(figure.metric), tuple(differences(paper, figure, card)))
        )
    return found


def compare_cells(paper: Paper, cells: Mapping[str, CellScores]) -> list[FigureComparison]:
    """Each of the paper's figures beside the cell whose protocol departs from its in the fewest fields."""
    found = []
    for figure in paper.figures:
        seen = {name: with_score(figure.metric, space_scores(cell)) for name, cell in cells.items()}
        told = {name: tuple(differences(paper, figure, one.card)) for name, one in seen.items()}
        name = min(told, key=lambda name: len(told[name]))
        found.append(FigureComparison(figure, seen[name].scores.get(figure.metric), told[name], name))
    return found


def shared_differences(found: Iterable[Sequence[Difference]]) -> list[Difference]:
    """The departures that all of one or more figures have alike, which are said once."""
    first, *others = found
    return [departure for departure in first if all(departure in other for other in others)]


def _text(value: Any) -> str:
    return "not said" if value is None else f"{value:,}" if type(value) is int else str(value)
