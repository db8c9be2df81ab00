"""What a search has come to: its settings by score, trainings that differ in their seed alone as one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusion.choice.confidence import Interval
from diffusion.choice.groups import group_gap, mean_interval, mean_of
from diffusion.choice.ranking import rank_metric
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.search.space import Point
from diffusion.search.trial import Trial
from diffusion.system.section import canonical_json

SEED = "train.seed"


class Scored(NamedTuple):
    """A trial that is done, with its scores."""

    trial: Trial
    document: ScoresDocument


class Group(NamedTuple):
    """One setting: its trials, and the cell whose mean over them is the best.

    `interval` is over the seeds, of one training over its images; None where that has none. `tied` says that
    the gap to the best setting is inside of what chance does, None where nobody knows.
    """

    point: Point
    trials: tuple[int, ...]
    cell: str
    metric: str
    value: float
    interval: Interval | None
    tied: bool | None

    def as_json(self) -> dict[str, Any]:
        """The group for a script."""
        low, high = self.interval or (None, None)
        return {**self._asdict(), "trials": list(self.trials), "interval": [low, high]}


def settings(scored: Sequence[Scored]) -> list[Group]:
    """The settings that have scores, the best first."""
    together: dict[str, list[Scored]] = {}
    for one in scored:
        together.setdefault(canonical_json(_without_seed(one.trial.point)), []).append(one)
    chosen = [(members, *_best_cell(members)) for members in together.values()]
    chosen.sort(key=lambda one: mean_of(one[2], rank_metric(one[2][0])))
    return [_group(members, name, cells, chosen[0][2]) for members, name, cells in chosen]


def _best_cell(members: Sequence[Scored]) -> tuple[str, list[CellScores]]:
    """The cell with the best mean over the trainings, and what it is in each."""
    cells = {name: [one.document.cells[name] for one in members] for name in members[0].document.cells}
    name = min(cells, key=lambda name: mean_of(cells[name], rank_metric(cells[name][0])))
    return name, cells[name]


def _group(
    members: Sequence[Scored], name: str, cells: Sequence[CellScores], best: Sequence[CellScores]
) -> Group:
    metric = rank_metric(cells[0])
    apart = None if cells is best else group_gap(cells, best, metric)
    return Group(
        point=_without_seed(members[0].trial.point),
        trials=tuple(one.trial.number for one in members),
        cell=name,
        metric=metric,
        value=mean_of(cells, metric),
        interval=mean_interval(cells, metric),
        tied=None if apart is None else not apart.is_significant,
    )


def _without_seed(point: Point) -> Point:
    return {name: value for name, value in point.items() if name != SEED}


def best_trial(group: Group, scored: Sequence[Scored]) -> Trial:
    """The trial of a setting that scored best."""
    return min((one.trial for one in scored if one.trial.number in group.trials), key=_value)


def _value(trial: Trial) -> float:
    assert trial.value is not None, "it is done"
    return trial.value
