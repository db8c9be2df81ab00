"""The settings of a search, sorted by score; trainings that differ only in the seed are one setting."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusion.choice.confidence import Interval, group_gap, mean_interval, mean_of
from diffusion.choice.ranking import rank_metric
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.search.search_config import Point
from diffusion.search.search_dir import Trial
from diffusion.system.section import canonical_json

SEED = "train.seed"


class ScoredTrial(NamedTuple):
    """A finished trial and its scores."""

    trial: Trial
    document: ScoresDocument


class SettingRow(NamedTuple):
    """One setting: its trials, and the cell with the best mean over its trainings.

    A point that was drawn several times is one training. `interval` is over the seeds, or over the images of
    a single training; None without one. `tied` is whether the gap to the best setting is within chance, None
    if that is unknown.
    """

    point: Point
    trials: tuple[int, ...]
    cell: str
    metric: str
    value: float
    interval: Interval | None
    tied: bool | None

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        low, high = self.interval or (None, None)
        return {**self._asdict(), "trials": list(self.trials), "interval": [low, high]}


def setting_rows(scored: Sequence[ScoredTrial]) -> list[SettingRow]:
    """Return the settings with scores, the best first."""
    by_setting: dict[str, list[ScoredTrial]] = {}
    for one in scored:
        by_setting.setdefault(canonical_json(_without_seed(one.trial.point)), []).append(one)
    chosen = [(members, *_best_cell(_trainings(members))) for members in by_setting.values()]
    chosen.sort(key=lambda one: mean_of(one[2], rank_metric(one[2][0])))
    return [_row(members, name, cells, chosen[0][2]) for members, name, cells in chosen]


def _trainings(members: Sequence[ScoredTrial]) -> list[ScoresDocument]:
    """Return the scores of each seed once: random and tpe may draw a point again."""
    by_seed: dict[object, ScoresDocument] = {}
    for one in members:
        by_seed.setdefault(one.trial.point.get(SEED), one.document)
    return list(by_seed.values())


def _best_cell(trainings: Sequence[ScoresDocument]) -> tuple[str, list[CellScores]]:
    """Return the cell with the best mean over the trainings, and its scores in each."""
    cells = {name: [one.cells[name] for one in trainings] for name in trainings[0].cells}
    name = min(cells, key=lambda name: mean_of(cells[name], rank_metric(cells[name][0])))
    return name, cells[name]


def _row(
    members: Sequence[ScoredTrial], name: str, cells: Sequence[CellScores], best: Sequence[CellScores]
) -> SettingRow:
    metric = rank_metric(cells[0])
    gap = None if cells is best else group_gap(cells, best, metric)
    return SettingRow(
        point=_without_seed(members[0].trial.point),
        trials=tuple(one.trial.number for one in members),
        cell=name,
        metric=metric,
        value=mean_of(cells, metric),
        interval=mean_interval(cells, metric),
        tied=None if gap is None else not gap.is_significant,
    )


def _without_seed(point: Point) -> Point:
    return {name: value for name, value in point.items() if name != SEED}


def best_trial(group: SettingRow, scored: Sequence[ScoredTrial]) -> Trial:
    """Return the trial of a setting with the best score."""
    members = [one for one in scored if one.trial.number in group.trials]
    return min(members, key=lambda one: one.document.best.value).trial
