"""Comparisons of published figures with one's own scores, and where the protocols differ."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusion.papers.paper import Figure, Paper
from diffusion.protocol.card import Card
from diffusion.protocol.scores import CellScores

ONCE = 1  # runs behind a score of this project


class Difference(NamedTuple):
    """A field that a paper states differently from a card; `here` is None if the card lacks it."""

    field: str
    paper: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.field} {_text(self.paper)} (here {_text(self.here)})"


@dataclass(frozen=True)
class FigureComparison:
    """A published figure, this project's value of the same score, and the protocol differences.

    `here` is None without such a score; `cell` names the cell of the value.
    """

    figure: Figure
    here: float | None
    differences: tuple[Difference, ...]
    cell: str | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether both are the same score by the same protocol, as far as the paper states it."""
        return self.here is not None and not self.differences

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
            "departures": [one._asdict() for one in self.differences],
        }


def differences(paper: Paper, figure: Figure, card: Card, aside: Collection[str] = ()) -> list[Difference]:
    """Return the fields, except those in `aside`, that differ or are missing in the card.

    A minimum over several runs is never comparable with a single run.
    """
    stated = paper.protocol_of(figure)
    found = [
        Difference(field, value, card.get(field))
        for field, value in stated.items()
        if field not in aside and card.get(field) != value
    ]
    return found + ([Difference("least of", paper.least_of, ONCE)] if paper.least_of != ONCE else [])


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


def compare_scores(paper: Paper, seen: Sequence[SpaceScores]) -> list[FigureComparison]:
    """Compare each of the paper's figures with the scores of one set of images."""
    found = []
    for figure in paper.figures:
        card, scores = with_score(figure.metric, seen)
        found.append(
            FigureComparison(figure, scores.get(figure.metric), tuple(differences(paper, figure, card)))
        )
    return found


def compare_cells(paper: Paper, cells: Mapping[str, CellScores]) -> list[FigureComparison]:
    """Compare each of the paper's figures with the cell that differs in the fewest fields."""
    found = []
    for figure in paper.figures:
        seen = {name: with_score(figure.metric, space_scores(cell)) for name, cell in cells.items()}
        found_differences = {name: tuple(differences(paper, figure, one.card)) for name, one in seen.items()}
        name = min(found_differences, key=lambda name: len(found_differences[name]))
        found.append(
            FigureComparison(figure, seen[name].scores.get(figure.metric), found_differences[name], name)
        )
    return found


def shared_differences(found: Iterable[Sequence[Difference]]) -> list[Difference]:
    """Return the differences common to all of one or more figures."""
    first, *others = found
    return [departure for departure in first if all(departure in other for other in others)]


def _text(value: Any) -> str:
    return "not stated" if value is None else f"{value:,}" if type(value) is int else str(value)
