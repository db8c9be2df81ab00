"""Comparing the scores of trainings: only numbers whose protocol cards agree stand side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from diffusion.choice.confidence import errors_of
from diffusion.choice.gate import card_diff
from diffusion.choice.groups import deviation_of, group_gap, mean_interval, mean_of
from diffusion.choice.ranking import Cells, is_limit, is_published, leader, rank_metric
from diffusion.choice.spaces import scores_in_space
from diffusion.protocol.card import COUNT_FIELDS, STATISTICS_FIELDS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import cell_order
from diffusion.protocol.scores import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import UsageError
from tracking.comparison.score_rows import Comparison, Difference, Fields, Group, ScoredRun, ScoreRow
from tracking.pages.links import comparison_link
from tracking.runs.run_lookup import find_run, find_ui
from tracking.runs.scored_runs import fetch_scores

T = TypeVar("T")


def load_scored(name: str) -> ScoredRun:
    """The scores that `name` means: a scores.json file, or a training's run (see `find_run`)."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return ScoredRun(name, read_scores(path), path=path)
    run = find_run(name)
    return ScoredRun(f"{run.info.run_name} ({run.info.run_id[:8]})", fetch_scores(run), run)


def mlflow_comparison_link(scored: Sequence[ScoredRun], address: str | None = None) -> str:
    """The address of MLflow's own page that compares these runs, on the server that is known at `address`.

    Without one that of `diffctl ui` is looked for. UsageError where one is a file; DiffctlError where no
    server shows them.
    """
    runs = [one.run for one in scored if one.run is not None]
    if len(runs) < len(scored):
        files = ", ".join(one.label for one in scored if one.run is None)
        raise UsageError(f"--open shows runs of MLflow, and {files} is a file: give a run's id or name")
    ids = [run.info.run_id for run in runs]
    return comparison_link(address or find_ui(ids[0]), [run.info.experiment_id for run in runs], ids)


def compare(scored: Sequence[ScoredRun], metrics: Sequence[str] = (), *, apart: bool = False) -> Comparison:
    """Compare every cell of the first document with the same cell of the others, in each feature space.

    Trainings that differ in their seed alone stand together, unless `apart`: as their mean, held against what
    another seed does. `metrics` are names of scores; without any, the one that ranks and the distance are
    shown. Of a limit for N → ∞ the number of images may differ. UsageError for a name that there is not, or
    that none of the cells has which can be compared.
    """
    groups: list[Group] = [[one] for one in scored] if apart else _grouped(scored)
    first = scored[0].document
    rows, left_out = [], []
    for space in (first.extractor, *first.spaces):
        asked = _asked(first, space, metrics)
        if asked or not metrics:
            found, differing = _compare_in(space, groups, asked)
            rows += found
            left_out += differing
    for metric in metrics:
        _refuse_unknown(metric, scored)
        _refuse_without_values(metric, rows)
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return Comparison(list(map(_named, groups)), groups, rows, [one for one in left_out if one.cells])


def _grouped(scored: Sequence[ScoredRun]) -> list[Group]:
    """What differs in the training's seed alone in one list, in the order of the first ones.

    Documents of one seed, such as one model scored twice, stay apart.
    """
    settings: dict[str, list[ScoredRun]] = {}
    for one in scored:
        if training := one.document.training:
            settings.setdefault(training.setting, []).append(one)
    together = [group for group in settings.values() if len({_seed(one) for one in group}) == len(group)]
    of_one = {id(one): group for group in together for one in group}
    groups = [of_one.get(id(one), [one]) for one in scored]
    return list({id(group[0]): group for group in groups}.values())


def _seed(one: ScoredRun) -> int | None:
    return one.document.training.seed if one.document.training else None


def _named(group: Group) -> str:
    """A column's label: the first training's, and of how many it is."""
    return group[0].label if len(group) == 1 else f"{group[0].label} ×{len(group)}"


def _asked(first: ScoresDocument, name: str, metrics: Sequence[str]) -> list[str]:
    """Which of the scores are of this feature space, by the names that they have in it alone."""
    own = {
        space: {
            EXTRACTORS[space].named_beside(score): score
            for cell in first.cells.values()
            for score in cell.spaces[space].scores
        }
        for space in first.spaces
    }
    if name in own:
        return [own[name][metric] for metric in metrics if metric in own[name]]
    return [metric for metric in metrics if not any(metric in names for names in own.values())]


def _compare_in(
    space: str, groups: Sequence[Group], metrics: Sequence[str]
) -> tuple[list[ScoreRow], list[Difference]]:
    """The rows of one feature space, and what is left out of it.

    A document that has no scores there stands by its own, whose cards differ; in a further space by none.
    """
    further = space != groups[0][0].document.extractor
    seen = [[_cells_in(one.document, space, further=further) for one in group] for group in groups]
    aside = f" in {space}" if further else ""
    left_out = [[Difference(f"{one.label}{aside}", [], {}) for one in group] for group in groups]
    rows: list[ScoreRow] = []
    for name, cell in sorted(seen[0][0].items(), key=lambda item: cell_order(item[1].axes)):
        shown = metrics or _usual(cell)
        for metric in shown:
            columns = [list(_agreeing(cell, [cells.get(name) for cells in group], metric)) for group in seen]
            if sum(map(len, columns)) > 1:
                row = _row(name, metric, columns)
                rows.append(replace(row, metric=cell.spec.named_beside(metric)) if further else row)
        for cells, difference in zip(_all(seen), _all(left_out), strict=True):
            if weighing := _weighing(_clash(cell, cells.get(name)), shown):
                difference.cells.append(name)
                difference.fields.update(weighing | difference.fields)
    return rows, _all(left_out)


def _agreeing(first: CellScores, cells: Sequence[CellScores | None], metric: str) -> Iterator[CellScores]:
    """Those of the cells that may stand beside the first one, as far as a score goes."""
    for cell in cells:
        if cell is not None and not _weighing(_clash(first, cell), [metric]):
            yield cell


def _clash(cell: CellScores, other: CellScores | None) -> Fields:
    return card_diff(cell, other, free=()) if other else {}


def _all(groups: Sequence[Sequence[T]]) -> list[T]:
    return [one for group in groups for one in group]


def _cells_in(document: ScoresDocument, space: str, *, further: bool) -> Cells:
    if space in document.spaces:
        return scores_in_space(document, space).cells
    return {} if further and space != document.extractor else document.cells


def _weighing(fields: Fields, metrics: Sequence[str]) -> Fields:
    """The differing fields that one of these scores depends on."""
    free = {*COUNT_FIELDS} if all(map(is_limit, metrics)) else set()
    free |= set() if any(map(is_published, metrics)) else {*STATISTICS_FIELDS}
    return {field: values for field, values in fields.items() if field not in free}


def _row(name: str, metric: str, columns: Sequence[Sequence[CellScores]]) -> ScoreRow:
    scored = [[cell for cell in column if metric in cell.scores] for column in columns]
    values = [mean_of(cells, metric) if cells else None for cells in scored]
    leading = _leading(metric, [cells for cells in scored if cells]) if len(columns) > 1 else None
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
        few_images=[any(_is_far_off(cell, metric) for cell in cells) for cells in scored],
    )


def _leading(metric: str, columns: Sequence[Sequence[CellScores]]) -> Sequence[CellScores] | None:
    """The column with the best value; None for a score that ranks nothing, and where one has no interval."""
    first = leader(metric)
    if not columns or first is None:
        return None
    if any(len(cells) == 1 and errors_of(cells[0], metric) is None for cells in columns):
        return None
    found: Sequence[CellScores] = first(columns, key=lambda cells: mean_of(cells, metric))
    return found


def _is_far_off(cell: CellScores, metric: str) -> bool:
    """Whether a score is a limit of fewer images than features, whose covariance lacks dimensions."""
    return is_limit(metric) and cell.num_images < cell.spec.features


def _usual(cell: CellScores) -> list[str]:
    """The score that ranks, and the Fréchet distance that people know."""
    return list(dict.fromkeys([rank_metric(cell), cell.spec.distance]))


def _refuse_unknown(metric: str, scored: Sequence[ScoredRun]) -> None:
    known = {name for one in scored for cell in one.document.cells.values() for name in cell.all_scores}
    if metric not in known:
        raise UsageError(f"there is no score {metric!r}: there are {', '.join(sorted(known))}")


def _refuse_without_values(metric: str, rows: list[ScoreRow]) -> None:
    found = [row for row in rows if row.metric == metric]
    if found and all(value is None for row in found for value in row.values):
        raise UsageError(f"none of the runs that can be compared with the first one has the score {metric!r}")
