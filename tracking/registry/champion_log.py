"""The log of a registered model's champions.

Each move of the champion is a param of one MLflow run, the model's history run: the key is the move's number,
the value the move as JSON. MLflow neither overwrites nor deletes a param. So of two concurrent moves with one
number the second fails, and nobody can delete a move. The aliases `champion` and `previous` follow the log;
the next command corrects them if they differ.
"""

import os
import socket
import time
import uuid
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from diffusion.choice.ranking import Cells, best_cell
from diffusion.system.checksums import parse_json
from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError
from diffusion.system.limits import MAX_NAME
from diffusion.system.section import PositiveInt, Section, ShortText, brief
from diffusion.system.signals import check_signals
from tracking.connectivity import MlflowError
from tracking.experiments import create_finished_run, ensure_experiment
from tracking.keys import CHAMPION, HISTORY_RUN, PREVIOUS, REGISTRY_EXPERIMENT, user_name
from tracking.store import find, permitted

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RESCORED = "anew"  # how the champion's own weights become a version with new scores
MAX_REASON = 1000  # characters; a param in MLflow's database has at most 6,000
MAX_NOTE = 500
MAX_TIME = 253_402_300_799_999  # milliseconds since 1970: the end of the year 9999


class ConcurrentMove(MlflowError, TemporaryError):
    """Another process moved the champion at the same time; this move did not happen."""


class Score(Section):
    """The score that a version is judged by: its best cell, the metric that ranks there, and its value."""

    cell: ShortText
    metric: ShortText
    value: Annotated[float, Field(ge=-1e15, le=1e15)]


class Move(Section):
    """A move of the champion from version `before` (None: there was none) to version `after`.

    `at` is in milliseconds since 1970. `how` names who decided, or RESCORED. `note` is the user's reason,
    `commit` the version's, `score` its score, and `against` that of `before`.
    """

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    number: PositiveInt
    at: Annotated[int, Field(ge=0, le=MAX_TIME)]
    who: ShortText
    how: Literal["gate", "force", "rollback", "anew"]
    before: PositiveInt | None
    after: PositiveInt
    reason: Annotated[str, Field(max_length=MAX_REASON)]
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""
    commit: ShortText | None = None
    score: Score | None = None
    against: Score | None = None


@dataclass(frozen=True)
class ChampionHistory:
    """The moves of a registered model's champion in order, and MLflow's aliases.

    `run_id` is the history run, None before the first move. `count` is the number of the last move, and
    larger than that of the last event if it cannot be read.
    """

    name: str
    run_id: str | None = None
    events: tuple[Move, ...] = ()
    count: int = 0
    aliases: dict[str, int] = field(default_factory=dict)

    @property
    def holder(self) -> int | None:
        """The champion's version: of the last move, or the alias if there is none or it cannot be read."""
        newest = [move.after for move in self.events[-1:]]
        is_readable = self.events and self.events[-1].number == self.count
        return newest[0] if is_readable else self.aliases.get(CHAMPION, *newest)

    @cached_property
    def _replay(self) -> tuple[list[int], dict[int, Move]]:
        """The stack of champions, in which a version may occur again, and the pinned versions."""
        held: list[int] = []
        pins: dict[int, Move] = {}
        moved = (version for move in self.events for version in (move.before, move.after))
        equal = {version: {version} for version in moved if version}  # those of the same weights
        for move in self.events:
            if move.before and held[-1:] != [move.before]:  # an alias before the log, or an unreadable move
                held.append(move.before)
            if move.how == "rollback":
                kept = list(held)
                while kept and kept[-1] != move.after:
                    kept.pop()
                for version in held[len(kept) :] if kept else held[-1:]:
                    pins |= dict.fromkeys(equal[version], move)
                held = kept or [*held, move.after]
            elif move.how == RESCORED:
                held = [move.after if version == move.before else version for version in held]
                joined = equal[move.before or move.after] | equal[move.after]
                equal |= dict.fromkeys(joined, joined)
            else:
                held.append(move.after)
            chosen = {move.after} if move.how == "rollback" else equal[move.after]
            pins = {version: pin for version, pin in pins.items() if version not in chosen}
        return held, pins

    @property
    def holders(self) -> list[int]:
        """The stack of champions that rollbacks return to, of versions scored again the last one."""
        return self._replay[0]

    @property
    def pinned(self) -> dict[int, Move]:
        """The versions that a rollback replaced, each with the rollback, until a user promotes one again.

        The versions of the same weights, scored again, are pinned and promoted together. The gate does not
        promote pinned ones: it preferred them once, and a user overruled it.
        """
        return self._replay[1]

    @property
    def previous(self) -> int | None:
        """The version that a rollback returns to, if any."""
        held = [version for version in self.holders if version != self.holder]
        return held[-1] if held else None

    @property
    def wrong_aliases(self) -> dict[str, int | None]:
        """The aliases that differ from the log, each with its right version (None: no version)."""
        right = {CHAMPION: self.holder, PREVIOUS: self.previous} if self.events else {}
        return {alias: version for alias, version in right.items() if self.aliases.get(alias) != version}

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts."""
        return {
            "name": self.name,
            "champion": self.holder,
            "previous": self.previous,
            "pinned": {str(version): move.id for version, move in self.pinned.items()},
            "events": [move.model_dump(mode="json") for move in self.events],
        }


def judged_score(cells: Cells) -> Score:
    """Return the score that a version is judged by."""
    cell, metric, value = best_cell(cells)
    return Score(cell=cell, metric=metric, value=value)


def ensure_model(client: "MlflowClient", name: str) -> None:
    """Create the registered model if it is missing, with its history run."""
    from mlflow.exceptions import MlflowException

    if find(client.get_registered_model, name) is not None:
        return
    run_id = _create_history_run(client, name)
    try:
        client.create_registered_model(name, tags={HISTORY_RUN: run_id})
    except MlflowException as error:
        client.delete_run(run_id)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process created it
            raise


def _create_history_run(client: "MlflowClient", name: str) -> str:
    return create_finished_run(client, ensure_experiment(client, REGISTRY_EXPERIMENT), name, {})


def read_history(client: "MlflowClient", name: str) -> ChampionHistory:
    """Read the log, empty for an unknown model; a move that cannot be read is left out with a warning."""
    model = find(client.get_registered_model, name)
    if model is None:
        return ChampionHistory(name)
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    run: Run | None = None
    if run_id := model.tags.get(HISTORY_RUN):
        run = client.get_run(run_id)
    elif experiment := client.get_experiment_by_name(REGISTRY_EXPERIMENT):  # somebody deleted the tag
        from mlflow.entities import ViewType

        query = f"attributes.run_name = '{name}'"
        runs = client.search_runs([experiment.experiment_id], query, ViewType.ALL)
        run = max(runs, key=lambda run: len(run.data.params), default=None)
    if run is None:
        return ChampionHistory(name, aliases=aliases)
    claims = sorted((int(key), value) for key, value in run.data.params.items() if key.isdecimal())
    moves = (_read_move(name, number, value) for number, value in claims)
    events = tuple(move for move in moves if move is not None)
    return ChampionHistory(name, str(run.info.run_id), events, claims[-1][0] if claims else 0, aliases)


def _read_move(name: str, number: int, value: str) -> Move | None:
    """Return the move of a param; None with a warning if it cannot be read."""
    try:
        return parse_json(value, Move, f"the param {number:06d}")
    except DiffctlError as error:
        text = f"move {number} of {name} is left out of the history: {error}"
        warnings.warn(text, DiffctlWarning, stacklevel=3)
        return None


def make_move(client: "MlflowClient", history: ChampionHistory, **values: object) -> ChampionHistory:
    """Carry out the next move of this history, and return it; ConcurrentMove if another process was first.

    `values` are the fields of the move without its number, id, time and user.
    """
    from mlflow.exceptions import MlflowException

    check_signals()  # a library may have swallowed an interruption
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "") or user_name()
    who = brief(f"{user}@{socket.gethostname()}", str, MAX_NAME - len("..."))
    signed = {"id": uuid.uuid4().hex, "at": time.time_ns() // 1_000_000, "who": who}
    place = {"number": history.count + 1, "before": history.holder}
    move = Move.model_validate({**signed, **place, **values})
    run_id = history.run_id or _create_history_run(client, history.name)
    client.set_registered_model_tag(history.name, HISTORY_RUN, run_id)  # missing if the model is not ours
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    refused = f"version {move.after} of {history.name} was not promoted"
    concurrent = ConcurrentMove(f"{refused}: another process moved the champion at the same time")
    try:
        client.log_param(run_id, f"{move.number:06d}", move.model_dump_json())
    except MlflowException:
        found = read_history(client, history.name)
        if found.count < move.number:
            raise
        if move not in found.events:
            raise concurrent from None  # the other process sets the aliases
        # MLflow stored the move, and its answer was lost.
    now = _set_aliases(client, read_history(client, history.name))
    if move not in now.events:  # both have created the history run
        raise concurrent
    return now


def repair(client: "MlflowClient", name: str) -> ChampionHistory:
    """Read the history and correct aliases of a killed move or a user's, with a DiffctlWarning for each."""
    found = read_history(client, name)
    if not found.wrong_aliases:
        return found
    repaired = _set_aliases(client, found)
    for alias in found.wrong_aliases.keys() - repaired.wrong_aliases.keys():
        was, now = (history.aliases.get(alias, "none") for history in (found, repaired))
        text = f"the alias {alias} of {name} was corrected: its version was {was}, the history has {now}"
        warnings.warn(text, DiffctlWarning, stacklevel=2)
    return repaired


def _set_aliases(client: "MlflowClient", history: ChampionHistory) -> ChampionHistory:
    """Make the aliases agree with the log; an alias of a deleted version stays as it is."""
    from mlflow.exceptions import MlflowException

    for alias, version in history.wrong_aliases.items():
        if version is None:
            if not permitted(client.delete_registered_model_alias, history.name, alias):
                text = f"the outdated alias {alias} of {history.name} stays: only its creator or an admin may"
                warnings.warn(f"{text} delete it", DiffctlWarning, stacklevel=3)
            continue
        try:
            find(client.set_registered_model_alias, history.name, alias, str(version))
        except MlflowException:  # another process created the alias after MLflow had looked for it
            find(client.set_registered_model_alias, history.name, alias, str(version))
    return read_history(client, history.name)
