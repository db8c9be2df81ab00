"""Rollback of the champion to an earlier one, which pins the present one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.protocol.scores_document import ScoresDocument
from diffusion.system.errors import UsageError
from tracking.keys import GIT_COMMIT
from tracking.registry.champion_log import (
    ConcurrentMove,
    History,
    Score,
    apply_move,
    judged_score,
    next_move,
    read_history,
    repair,
)
from tracking.registry.model_versions import fetch_version_scores, fetch_version_weights, get_version
from tracking.registry.promotion import readable_scores
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Rollback:
    """A planned rollback: the version to return to with its file and scores, and the history at that time."""

    history: History
    target: "ModelVersion"
    weights: Path
    scores: ScoresDocument


def plan_rollback(name: str, to: int | None = None) -> Rollback:
    """Plan a return to the previous champion, or to the earlier champion `to`.

    UsageError without an earlier champion, or if `to` never was champion.
    """
    with mlflow_client() as client:
        history = repair(client, name)
        target = get_version(client, name, number := _target(history, to))
        if target is None:
            raise UsageError(f"version {number} of {name} was deleted in MLflow: give another one by --to")
        weights = fetch_version_weights(client, target)
        return Rollback(history, target, weights, fetch_version_scores(client, target))


def _target(history: History, to: int | None) -> int:
    """Return the number of the version to return to."""
    name, holder = history.name, history.holder
    if holder is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    number = history.previous if to is None else to
    if number == holder:
        raise UsageError(f"version {number} of {name} is champion already")
    moved = [version for move in history.events for version in (move.before, move.after)]
    champions = sorted({version for version in moved if version is not None} - {holder})
    if number is None:
        others = ", ".join(map(str, champions))
        raise UsageError(
            f"version {holder} of {name} is where all rollbacks end: "
            + (f"give an earlier champion by --to ({others})" if others else "no other version was champion")
        )
    if number not in champions:
        raise UsageError(
            f"version {number} of {name} never was champion: `diffctl promote {number}` compares it with "
            f"version {holder}"
        )
    return number


def roll_back(plan: Rollback, note: str = "") -> History:
    """Make the planned version champion again and pin the present one.

    ConcurrentMove if the champion changed since it was planned.
    """
    with mlflow_client() as client:
        now = read_history(client, plan.history.name)
        if now.holder != plan.history.holder:
            raise ConcurrentMove(
                f"nothing was rolled back: version {now.holder} became champion meanwhile; "
                "see `diffctl history`"
            )
        move = next_move(
            now,
            how="rollback",
            after=int(plan.target.version),
            reason=f"back from version {now.holder}",
            note=note,
            commit=plan.target.tags.get(GIT_COMMIT),
            score=judged_score(plan.scores.cells),
            against=_score_of(client, now),
        )
        return apply_move(client, now, move)


def _score_of(client: "MlflowClient", history: History) -> Score | None:
    """Return the champion's score if it can be read."""
    champion = get_version(client, history.name, history.holder or 0)
    scores = readable_scores(client, champion)[0] if champion else None
    return judged_score(scores.cells) if scores else None
