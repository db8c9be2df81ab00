"""Comparing the scores of trainings: only numbers whose protocol cards agree stand side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.errors import UsageError
from diffusion.evaluation.intervals import Interval, interval_of, told_apart
from diffusion.evaluation.ranking import leader, rank_metric
from diffusion.grid import order
from tracking.gate import clash
from tracking.lookup import find_run
from tracking.runs import Document, fetch_scores, read_scores

Cell = dict[str, Any]
Score = tuple[float | None, Interval | None]


@dataclass(frozen=True)
class Scored:
    """A scores document under the name that it has in the comparison."""

    label: str
    document: Document


@dataclass(frozen=True)
class Row:
    """One score of one cell, a value and its confidence interval for each label.

    The value is None where the cell is missing or its card differs, the interval where there is none.
    """

    cell: str
    metric: str
    values: list[float | None]
    intervals: list[Interval | None]

    @property
    def best(self) -> float | None:
        """The best value, the lowest of a distance; None for a score that ranks nothing."""
        first = leader(self.metric)
        return first(value for value in self.values if value is not None) if first else None

    @property
    def tied(self) -> list[bool]:
        """Whether each value, other than the best, lies within the confidence interval of its gap to it."""
        if self.best is None:
            return [False] * len(self.values)
        best = self.best, self.intervals[self.values.index(self.best)]
        return [_tied(best, (value, own)) for value, own in zip(self.values, self.intervals, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        return {**vars(self), "best": self.best, "tied": self.tied}


@dataclass(frozen=True)
class Difference:
    """Cells of `label` that cannot be compared with the first one's: the fields that differ, both values."""

    label: str
    cells: list[str]
    fields: dict[str, list[Any]]


@dataclass(frozen=True)
class Comparison:
    """What may be compared, and what may not and why. The first label is what the others are held against."""

    labels: list[str]
    rows: list[Row]
    differences: list[Difference]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        return {
            "runs": self.labels,
            "scores": [row.as_json() for row in self.rows],
            "not_comparable": [vars(difference) for difference in self.differences],
        }


def load_scored(name: str) -> Scored:
    """The scores that `name` means: a scores.json file, or a training's run (see `find_run`)."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return Scored(name, read_scores(path))
    run = find_run(name)
    return Scored(f"{run.info.run_name} ({run.info.run_id[:8]})", fetch_scores(run))


def compare(scored: Sequence[Scored], metrics: Sequence[str] = ()) -> Comparison:
    """Compare every cell of the first document with the same cell of the others.

    `metrics` are names of scores; without any, the one that ranks and the distance are shown. UsageError for
    a name that there is not.
    """
    rows: list[Row] = []
    clashes: list[Difference] = []
    for name, cell in sorted(scored[0].document["cells"].items(), key=lambda item: order(item[1])):
        agreeing: list[Cell | None] = [cell]
        for other in scored[1:]:
            theirs = other.document["cells"].get(name)
            fields = clash(cell, theirs) if theirs else {}
            if fields:
                clashes.append(Difference(other.label, [name], fields))
            agreeing.append(None if fields else theirs)
        if sum(one is not None for one in agreeing) > 1:
            rows += [_row(name, metric, agreeing) for metric in metrics or _usual(cell)]
    for metric in metrics:
        _refuse_unknown(metric, scored)
    return Comparison([one.label for one in scored], rows, _merged(clashes))


def _row(name: str, metric: str, cells: list[Cell | None]) -> Row:
    values = [cell["scores"].get(metric) if cell else None for cell in cells]
    return Row(name, metric, values, [interval_of(cell, metric) if cell else None for cell in cells])


def _tied(best: Score, other: Score) -> bool:
    (value, interval), (theirs, their_interval) = best, other
    if value is None or theirs is None or value == theirs or interval is None or their_interval is None:
        return False
    return not told_apart(value, interval, theirs, their_interval)


def _usual(cell: Cell) -> list[str]:
    """The score that ranks, and the Fréchet distance that people know."""
    distance = next(name for name in cell["scores"] if name == "fid" or name.startswith("fd_"))
    return list(dict.fromkeys([rank_metric(cell), distance]))


def _refuse_unknown(metric: str, scored: Sequence[Scored]) -> None:
    known = {name for one in scored for cell in one.document["cells"].values() for name in cell["scores"]}
    if metric not in known:
        raise UsageError(f"there is no score {metric!r}: there are {', '.join(sorted(known))}")


def _merged(clashes: list[Difference]) -> list[Difference]:
    """One difference for each label."""
    merged: dict[str, Difference] = {}
    for one in clashes:
        before = merged.get(one.label, Difference(one.label, [], {}))
        cells, fields = before.cells + one.cells, {**one.fields, **before.fields}
        merged[one.label] = Difference(one.label, cells, fields)
    return list(merged.values())
