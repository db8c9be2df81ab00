"""Comparison of the scores of trainings: only numbers with equal protocol cards share a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.choice.confidence import (
    Gap,
    Interval,
    card_diff,
    deviation_of,
    errors_of,
    group_gap,
    mean_interval,
    mean_of,
)
from diffusion.choice.ranking import Cells, is_limit, is_published, leader, rank_metric
from diffusion.choice.selection import scores_in_space
from diffusion.protocol.card import COUNT_FIELDS, STATISTICS_FIELDS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import cell_order
from diffusion.protocol.scores_document import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import UsageError
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_scores

if TYPE_CHECKING:
    from mlflow.entities import Run

Fields = dict[str, list[Any]]


def format_spread(deviation: float) -> str:
    """Return a standard deviation with two digits, or without decimals if it is larger."""
    return f"{deviation:.2g}" if deviation < 99.5 else f"{deviation:.0f}"  # `.2g` gives it an exponent


@dataclass(frozen=True)
class ScoredRun:
    """A scores document with its label in the comparison, and its run or its file."""

    label: str
    document: ScoresDocument
    run: "Run | None" = None
    path: Path | None = None


Group = Sequence[ScoredRun]  # trainings that differ in their seed alone


def load_scored(name: str) -> ScoredRun:
    """Return the scores of a scores.json file, or of a training's run (see `find_run`)."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return ScoredRun(name, read_scores(path), path=path)
    run = find_run(name)
    return ScoredRun(f"{run.info.run_name} ({run.info.run_id[:8]})", fetch_scores(run), run)


@dataclass(frozen=True)
class ScoreRow:
    """A score of a cell: for each column a value, its confidence interval, and its gap to the best.

    A value is None if the cell is missing or its card differs. The value of a group is the mean of
    `trainings` trainings, `each` of them, with their standard `deviations`. `best` is the best value; None
    for a score that does not rank, and if a value has no interval, because it could be best by chance.
    `few_images` marks a limit for N → ∞ that was estimated from fewer images than features.
    """

    cell: str
    metric: str
    values: list[float | None]
    trainings: list[int]
    each: list[list[float]]
    deviations: list[float | None]
    intervals: list[Interval | None]
    best: float | None
    gaps: list[Gap | None]
    few_images: list[bool]

    @property
    def ranks(self) -> bool:
        """Whether one of several values can be the best."""
        return len(self.values) > 1 and leader(self.metric) is not None

    @property
    def tied(self) -> list[bool]:
        """Whether each value differs from the best, but not significantly."""
        return [gap is not None and not gap.is_significant for gap in self.gaps]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts."""
        gaps = [None if gap is None else gap._asdict() for gap in self.gaps]
        return {**vars(self), "gaps": gaps, "tied": self.tied}


@dataclass(frozen=True)
class Difference:
    """Cells of `label` that are not comparable with the first run's: the differing fields, both values."""

    label: str
    cells: list[str]
    fields: Fields


@dataclass(frozen=True)
class Comparison:
    """The comparable scores, and what is not comparable and why; the first label is the reference.

    `groups` are the documents of each label, several if they differ in the training's seed alone.
    """

    labels: list[str]
    groups: list[Group]
    rows: list[ScoreRow]
    differences: list[Difference]

    @property
    def seed_groups(self) -> dict[str, list[str]]:
        """The labels of the documents in each column that has several trainings."""
        columns = zip(self.labels, self.groups, strict=True)
        return {name: [one.label for one in group] for name, group in columns if len(group) > 1}

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts."""
        return {
            "runs": self.labels,
            "members": [[one.label for one in group] for group in self.groups],
            "scores": [row.as_json() for row in self.rows],
            "not_comparable": [vars(difference) for difference in self.differences],
        }


def compare(scored: Sequence[ScoredRun], metrics: Sequence[str] = (), *, apart: bool = False) -> Comparison:
    """Compare every cell of the first document with the same cell of the others, in each feature space.

    Trainings that differ in their seed alone are one column, unless `apart`: their mean, with gaps measured
    against the spread of seeds. `metrics` are names of scores, by default the one that ranks and the Fréchet
    distance. A limit for N → ∞ may have another number of images. UsageError for an unknown score, or one
    that no comparable cell has.
    """
    groups: list[Group] = [[one] for one in scored] if apart else _grouped(scored)
    first = scored[0].document
    rows, left_out = [], []
    for space in (first.extractor, *first.spaces):
        chosen = _metrics_of_space(first, space, metrics)
        if chosen or not metrics:
            found, differing = _compare_in_space(space, groups, chosen)
            rows += found
            left_out += differing
    _refuse_missing(metrics, scored, rows)
    rows = [row for row in rows if any(value is not None for value in row.values)]
    labels = [group[0].label + (f" ×{len(group)}" if len(group) > 1 else "") for group in groups]
    return Comparison(labels, groups, rows, [one for one in left_out if one.cells])


def _grouped(scored: Sequence[ScoredRun]) -> list[Group]:
    """Group trainings that differ in their seed alone, in the order of the first ones.

    Documents with the same seed, such as one model scored twice, stay separate.
    """
    settings: dict[str, list[ScoredRun]] = {}
    for one in scored:
        if training := one.document.training:
            settings.setdefault(training.setting, []).append(one)
    group_of: dict[int, Group] = {}
    for group in settings.values():
        if len({one.document.training.seed for one in group if one.document.training}) == len(group):
            group_of |= {id(one): group for one in group}
    groups = [group_of.get(id(one), [one]) for one in scored]
    return list({id(group[0]): group for group in groups}.values())


def _metrics_of_space(first: ScoresDocument, name: str, metrics: Sequence[str]) -> list[str]:
    """Return the scores that belong to a feature space, by their names inside it."""
    own = {
        space: {
            EXTRACTORS[space].qualified(score): score
            for cell in first.cells.values()
            for score in cell.spaces[space].scores
        }
        for space in first.spaces
    }
    if name in own:
        return [own[name][metric] for metric in metrics if metric in own[name]]
    return [metric for metric in metrics if not any(metric in names for names in own.values())]


def _compare_in_space(
    space: str, groups: Sequence[Group], metrics: Sequence[str]
) -> tuple[list[ScoreRow], list[Difference]]:
    """Return the rows of a feature space, and the cells that are not comparable in it.

    A document without scores in the first space has its own scores there; their cards differ.
    """
    further = space != groups[0][0].document.extractor
    columns = [[_cells_in_space(one.document, space, further=further) for one in group] for group in groups]
    where = f" in {space}" if further else ""
    differences = [Difference(f"{one.label}{where}", [], {}) for one in chain.from_iterable(groups)]
    rows: list[ScoreRow] = []
    for name, cell in sorted(columns[0][0].items(), key=lambda item: cell_order(item[1].axes)):
        chosen = metrics or list(dict.fromkeys([rank_metric(cell), cell.spec.distance]))
        for metric in chosen:
            comparable = [
                [one for cells in side if (one := cells.get(name)) and not _relevant(cell, one, [metric])]
                for side in columns
            ]
            if sum(map(len, comparable)) > 1:
                row = _row(name, metric, comparable)
                rows.append(replace(row, metric=cell.spec.qualified(metric)) if further else row)
        for cells, difference in zip(chain.from_iterable(columns), differences, strict=True):
            if name in cells and (fields := _relevant(cell, cells[name], chosen)):
                difference.cells.append(name)
                difference.fields.update(fields | difference.fields)
    return rows, differences


def _cells_in_space(document: ScoresDocument, space: str, *, further: bool) -> Cells:
    if space in document.spaces:
        return scores_in_space(document, space).cells
    return {} if further and space != document.extractor else document.cells


def _relevant(cell: CellScores, other: CellScores, metrics: Sequence[str]) -> Fields:
    """Return the differing fields of two cards that one of these scores depends on."""
    free = {*COUNT_FIELDS} if all(map(is_limit, metrics)) else set()
    free |= set() if any(map(is_published, metrics)) else {*STATISTICS_FIELDS}
    fields = card_diff(cell, other, free=())
    return {field: values for field, values in fields.items() if field not in free}


def _row(name: str, metric: str, columns: Sequence[Sequence[CellScores]]) -> ScoreRow:
    scored = [[cell for cell in column if metric in cell.scores] for column in columns]
    values = [mean_of(cells, metric) if cells else None for cells in scored]
    present, first = [cells for cells in scored if cells], leader(metric)
    certain = all(len(cells) > 1 or errors_of(cells[0], metric) is not None for cells in present)
    leading: Sequence[CellScores] | None = None  # the column with the best value
    if first is not None and certain and present and len(columns) > 1:
        leading = first(present, key=lambda cells: mean_of(cells, metric))
    best = mean_of(leading, metric) if leading else None
    return ScoreRow(
        cell=name,
        metric=metric,
        values=values,
        trainings=[len(cells) for cells in scored],
        each=[[cell.scores[metric] for cell in cells] for cells in scored],
        deviations=[deviation_of(cells, metric) for cells in scored],
        intervals=[mean_interval(cells, metric) if cells else None for cells in scored],
        best=best,
        gaps=[
            group_gap(cells, leading, metric) if leading and cells and value != best else None
            for cells, value in zip(scored, values, strict=True)
        ],
        # The covariance of fewer images than features lacks dimensions.
        few_images=[
            is_limit(metric) and any(cell.num_images < cell.spec.features for cell in cells)
            for cells in scored
        ],
    )


def _refuse_missing(metrics: Sequence[str], scored: Sequence[ScoredRun], rows: Sequence[ScoreRow]) -> None:
    known = {name for one in scored for cell in one.document.cells.values() for name in cell.all_scores}
    for metric in metrics:
        if metric not in known:
            raise UsageError(f"there is no score {metric!r}: there are {', '.join(sorted(known))}")
        found = [value for row in rows if row.metric == metric for value in row.values]
        if found and all(value is None for value in found):
            raise UsageError(f"no run that is comparable with the first one has the score {metric!r}")
