"""Comparing the scores of trainings: only numbers whose protocol cards agree stand side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.choice.certainty import Gap, Interval, errors_of, gap, interval_of
from diffusion.choice.gate import clash
from diffusion.choice.ranking import is_limit, leader, rank_metric
from diffusion.protocol.card import OF_COUNT
from diffusion.protocol.grid import order
from diffusion.protocol.scores import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import UsageError
from tracking.lookup import find_run
from tracking.runs import fetch_scores

Fields = dict[str, list[Any]]


@dataclass(frozen=True)
class Scored:
    """A scores document under the name that it has in the comparison."""

    label: str
    document: ScoresDocument


@dataclass(frozen=True)
class Row:
    """One score of one cell, a value and its confidence interval for each label.

    The value is None where the cell is missing or its card differs, the interval where there is none.
    `best` is the best value, the lowest of a distance: None for a score that ranks nothing, and where a value
    has no interval, since it may be best by chance. `gaps` are those of the others to it, None without one.
    `few_images` marks a limit for N → ∞ that was read off fewer images than there are features.
    """

    cell: str
    metric: str
    values: list[float | None]
    intervals: list[Interval | None]
    best: float | None
    gaps: list[Gap | None]
    few_images: list[bool]

    @property
    def ranks(self) -> bool:
        """Whether one of the values would be the best."""
        return leader(self.metric) is not None and any(value is not None for value in self.values)

    @property
    def tied(self) -> list[bool]:
        """Whether each value, other than the best, lies within the confidence interval of its gap to it."""
        return [gap is not None and not gap.is_told for gap in self.gaps]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        gaps = [None if gap is None else gap._asdict() for gap in self.gaps]
        return {**vars(self), "gaps": gaps, "tied": self.tied}


@dataclass(frozen=True)
class Difference:
    """Cells of `label` that cannot be compared with the first one's: the fields that differ, both values."""

    label: str
    cells: list[str]
    fields: Fields


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

    `metrics` are names of scores; without any, the one that ranks and the distance are shown. Of a limit for
    N → ∞ the number of images may differ. UsageError for a name that there is not, or that none of the cells
    has which can be compared.
    """
    rows: list[Row] = []
    left_out = [Difference(other.label, [], {}) for other in scored[1:]]
    for name, cell in sorted(scored[0].document.cells.items(), key=lambda item: order(item[1].axes)):
        shown = metrics or _usual(cell)
        others = [other.document.cells.get(name) for other in scored[1:]]
        found = [clash(cell, theirs) if theirs else {} for theirs in others]
        for metric in shown:
            pairs = zip(others, found, strict=True)
            agreeing = [None if _weighing(fields, [metric]) else theirs for theirs, fields in pairs]
            if any(agreeing):
                rows.append(_row(name, metric, [cell, *agreeing]))
        for difference, fields in zip(left_out, found, strict=True):
            if weighing := _weighing(fields, shown):
                difference.cells.append(name)
                difference.fields.update(weighing | difference.fields)
    for metric in metrics:
        _refuse_unknown(metric, scored)
        _refuse_without_values(metric, rows)
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return Comparison([one.label for one in scored], rows, [one for one in left_out if one.cells])


def _weighing(fields: Fields, metrics: Sequence[str]) -> Fields:
    """The differing fields that one of these scores depends on."""
    free = OF_COUNT if all(map(is_limit, metrics)) else ()
    return {field: values for field, values in fields.items() if field not in free}


def _row(name: str, metric: str, cells: Sequence[CellScores | None]) -> Row:
    values = [cell.scores.get(metric) if cell else None for cell in cells]
    intervals = [interval_of(cell, metric) if cell else None for cell in cells]
    few = [cell is not None and metric in cell.scores and _is_far_off(cell, metric) for cell in cells]
    with_value = [cell for cell, value in zip(cells, values, strict=True) if cell and value is not None]
    leading = _leading(metric, with_value)
    if leading is None:
        return Row(name, metric, values, intervals, None, [None] * len(cells), few)
    best = leading.scores[metric]
    gaps = [
        gap(cell, leading, metric) if cell and value is not None and value != best else None
        for cell, value in zip(cells, values, strict=True)
    ]
    return Row(name, metric, values, intervals, float(best), gaps, few)


def _leading(metric: str, cells: Sequence[CellScores]) -> CellScores | None:
    """The cell with the best value; None for a score that ranks nothing, and where one has no interval."""
    first = leader(metric)
    if not cells or first is None or any(errors_of(cell, metric) is None for cell in cells):
        return None
    found: CellScores = first(cells, key=lambda cell: cell.scores[metric])
    return found


def _is_far_off(cell: CellScores, metric: str) -> bool:
    """Whether a score is a limit of fewer images than features, whose covariance lacks dimensions."""
    return is_limit(metric) and cell.num_images < cell.spec.features


def _usual(cell: CellScores) -> list[str]:
    """The score that ranks, and the Fréchet distance that people know."""
    return list(dict.fromkeys([rank_metric(cell), cell.spec.distance]))


def _refuse_unknown(metric: str, scored: Sequence[Scored]) -> None:
    known = {name for one in scored for cell in one.document.cells.values() for name in cell.scores}
    if metric not in known:
        raise UsageError(f"there is no score {metric!r}: there are {', '.join(sorted(known))}")


def _refuse_without_values(metric: str, rows: list[Row]) -> None:
    found = [row for row in rows if row.metric == metric]
    if found and all(value is None for row in found for value in row.values):
        raise UsageError(f"none of the runs that can be compared with the first one has the score {metric!r}")
