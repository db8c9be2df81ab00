"""The settings of a search, sorted by score; trainings that differ only in the seed are one setting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion.choice.confidence import Interval, group_gap, mean_interval, mean_of
from diffusion.choice.ranking import rank_metric
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.search.search_config import Point
from diffusion.system.section import canonical_json
from diffusion.trials.trial_runs import Trial

SEED = "train.seed"

Scores = Mapping[int, ScoresDocument]
"""The scores of the finished trials by their numbers."""


class SettingRow(NamedTuple):
    """One setting: its scored trials, and the cell with the best mean over its trainings.

    A point that was drawn several times is one training. `interval` is over the seeds, or over the images of
    a single training; None without one. `tied` is whether the gap to the best setting is within chance, None
    if that is unknown. `unscored` are its pruned and failed trials whose seed has no score: the mean of the
    other seeds is too good.
    """

    point: Point
    trials: tuple[int, ...]
    cell: str
    metric: str
    value: float
    interval: Interval | None
    tied: bool | None
    unscored: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        low, high = self.interval or (None, None)
        numbers = {"trials": list(self.trials), "unscored": list(self.unscored)}
        return {**self._asdict(), **numbers, "interval": [low, high]}


class _Setting(NamedTuple):
    """The trials of a setting with scores and without, the best cell, and its scores in each training."""

    members: Sequence[Trial]
    unscored: Sequence[Trial]
    cell: str
    cells: Sequence[CellScores]

    @property
    def rank(self) -> tuple[bool, float]:
        """The place in the order of settings: the best mean first, those with unscored trials last."""
        return bool(self.unscored), mean_of(self.cells, rank_metric(self.cells[0]))


def setting_rows(trials: Sequence[Trial], scores: Scores) -> list[SettingRow]:
    """Return the settings with scores, the best first, and after them those with a trial without a score."""
    by_setting: dict[str, list[Trial]] = {}
    for one in trials:
        by_setting.setdefault(canonical_json(_without_seed(one.point)), []).append(one)
    chosen = [
        _setting(members, scores)
        for members in by_setting.values()
        if scores.keys() & {one.number for one in members}
    ]
    chosen.sort(key=lambda one: one.rank)
    return [_row(one, chosen[0]) for one in chosen]


def _setting(trials: Sequence[Trial], scores: Scores) -> _Setting:
    """Return a setting with the scores of each seed once: random and tpe may draw a point again."""
    by_seed: dict[object, ScoresDocument] = {}
    members = [one for one in trials if one.number in scores]
    for one in members:
        by_seed.setdefault(one.point.get(SEED), scores[one.number])
    unscored = [one for one in trials if one.point.get(SEED) not in by_seed]
    first, *_ = trainings = list(by_seed.values())
    cells = {name: [one.cells[name] for one in trainings] for name in first.cells}
    name = min(cells, key=lambda name: mean_of(cells[name], rank_metric(cells[name][0])))
    return _Setting(members, unscored, name, cells[name])


def _row(one: _Setting, best: _Setting) -> SettingRow:
    metric = rank_metric(one.cells[0])
    gap = None if one is best or one.unscored else group_gap(one.cells, best.cells, metric)
    return SettingRow(
        point=_without_seed(one.members[0].point),
        trials=tuple(trial.number for trial in one.members),
        cell=one.cell,
        metric=metric,
        value=mean_of(one.cells, metric),
        interval=mean_interval(one.cells, metric),
        tied=None if gap is None else not gap.is_significant,
        unscored=tuple(trial.number for trial in one.unscored),
    )


def _without_seed(point: Point) -> Point:
    return {name: value for name, value in point.items() if name != SEED}


def best_trial(row: SettingRow, scores: Scores) -> int:
    """Return the number of the setting's trial with the best score."""
    return min(row.trials, key=lambda number: scores[number].best.value)
