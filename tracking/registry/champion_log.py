"""The log of a registered model's champions, with compare-and-set on top of MLflow's alias.

MLflow's alias has neither a history nor a compare-and-set, so it only follows this log. A move is recorded in
three steps:

1. record: a tag of the registered model. Its key contains an id, so that no record is overwritten;
2. claim: a param of a run, named by the move's number. MLflow never overwrites a param, so of two concurrent
   moves with one number only the first counts. The other stays unclaimed and never happened;
3. aliases: `champion` and `previous` are set, and read again until they agree with the log.

A process that is killed before the claim has moved nothing. If it is killed after the claim, the move has
happened and the next command repairs the aliases.
"""

import os
import socket
import time
import uuid
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from diffusion.choice.ranking import Cells, best_cell
from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError
from diffusion.system.json_files import parse_json
from diffusion.system.limits import MAX_NAME
from diffusion.system.section import PositiveInt, Section, ShortText, brief
from diffusion.system.signals import check_signals
from tracking.connectivity import MlflowError
from tracking.experiments import create_finished_run, ensure_experiment
from tracking.keys import CHAMPION, EVENT, HISTORY_RUN, PREVIOUS, REGISTRY_EXPERIMENT, user_name

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.tracking import MlflowClient

RESCORED = "anew"  # how the champion's own weights become a version with new scores
MAX_REASON = 1000  # characters; a tag in MLflow's database has at most 5,000
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

    `at` is in milliseconds since 1970. `how` names who decided, or RESCORED.
    `note` is the user's reason, `commit` the version's, `score` its score, and `against` that of `before`.
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

    @property
    def key(self) -> str:
        """The tag that records the move."""
        return f"{EVENT}.{self.claim}.{self.id}"

    @property
    def claim(self) -> str:
        """The param that claims the move's number, in a form that sorts."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class History:
    """The moves of a registered model's champion, and MLflow's aliases.

    `events` are the claimed moves in order, `unclaimed` those that were recorded and did not happen. `run_id`
    is the run of the claims, None before the first move.
    """

    name: str
    run_id: str | None = None
    events: tuple[Move, ...] = ()
    unclaimed: tuple[Move, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)

    @property
    def holder(self) -> int | None:
        """The champion's version; without any move the alias, which something else has set."""
        return self.events[-1].after if self.events else self.aliases.get(CHAMPION)

    @property
    def holders(self) -> list[int]:
        """The stack of versions that rollbacks return to; the last one is the champion.

        A version that was scored again is replaced by the version that it became.
        """
        held = [self.events[0].before] if self.events and self.events[0].before else []
        for move in self.events:
            if move.how == "rollback" and move.after in held:
                del held[held.index(move.after) + 1 :]
            else:
                left = {move.after, move.before} if move.how == RESCORED else {move.after}
                held = [version for version in held if version not in left] + [move.after]
        return held

    @property
    def previous(self) -> int | None:
        """The version that a rollback returns to, if any."""
        held = self.holders
        return held[-2] if len(held) > 1 else None

    @property
    def pinned(self) -> dict[int, Move]:
        """The versions that a rollback replaced, each with the rollback, until a user promotes one again.

        A version is pinned together with the versions of the same weights that it was before it was scored
        again. The gate does not promote them: it preferred them once, and a user overruled it.
        """
        pins: dict[int, Move] = {}
        for number, move in enumerate(self.events):
            if move.how == "rollback":
                before = History(self.name, events=self.events[:number])
                pins.update(dict.fromkeys(before._replaced_by(move), move))
            pins.pop(move.after, None)
        return pins

    def _replaced_by(self, rollback: Move) -> set[int]:
        """Return the versions that a rollback, the next move, replaces."""
        held = self.holders
        later = held[held.index(rollback.after) + 1 :] if rollback.after in held else [rollback.before]
        replaced = {version for version in later if version is not None}
        for move in reversed(self.events):
            if move.how == RESCORED and move.after in replaced and move.before is not None:
                replaced.add(move.before)
        return replaced

    @property
    def wrong_aliases(self) -> dict[str, int | None]:
        """The aliases that differ from the log, each with its right version (None: no version)."""
        if not self.events:
            return {}
        right = {CHAMPION: self.holder, PREVIOUS: self.previous}
        return {alias: version for alias, version in right.items() if self.aliases.get(alias) != version}

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts."""
        return {
            "name": self.name,
            "champion": self.holder,
            "previous": self.previous,
            "pinned": {str(version): move.id for version, move in self.pinned.items()},
            "events": [move.model_dump(mode="json") for move in self.events],
            "not_carried_out": [move.model_dump(mode="json") for move in self.unclaimed],
        }


def judged_score(cells: Cells) -> Score:
    """Return the score that a version is judged by."""
    cell, metric, value = best_cell(cells)
    return Score(cell=cell, metric=metric, value=value)


def find_model(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    """Return the registered model of this name, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def ensure_model(client: "MlflowClient", name: str) -> None:
    """Create the registered model if it is missing, with the run of its claims."""
    from mlflow.exceptions import MlflowException

    if find_model(client, name) is not None:
        return
    run_id = _create_run(client, name)
    try:
        client.create_registered_model(name, tags={HISTORY_RUN: run_id})
    except MlflowException as error:
        client.delete_run(run_id)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process created it
            raise


def _create_run(client: "MlflowClient", name: str) -> str:
    return create_finished_run(client, ensure_experiment(client, REGISTRY_EXPERIMENT), name, {})


def read_history(client: "MlflowClient", name: str) -> History:
    """Read the log, empty for an unknown model; DiffctlError if a record is damaged or missing."""
    model, claims = find_model(client, name), dict[str, str]()
    if model is None:
        return History(name)
    run_id = model.tags.get(HISTORY_RUN)
    if run_id is not None:
        claims = client.get_run(run_id).data.params
        model = client.get_registered_model(name)  # after the claims: a move is recorded before its claim
    records = {key: value for key, value in model.tags.items() if key.startswith(f"{EVENT}.")}
    found = [parse_json(value, Move, f"the tag {key} of {name}") for key, value in records.items()]
    by_id = {move.id: move for move in found}
    claimed = sorted((number, id) for number, id in claims.items() if number.isdigit())
    if missing := [number for number, id in claimed if id not in by_id]:
        raise DiffctlError(
            f"the history of {name} is damaged: the tag of move {int(missing[0])} was deleted in MLflow"
        )
    events = tuple(by_id[id] for _, id in claimed)
    unclaimed = sorted((move for move in found if move not in events), key=lambda move: move.key)
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    return History(name, run_id, events, tuple(unclaimed), aliases)


def next_move(history: History, **values: object) -> Move:
    """Return the move after this history, with number, id, time and user; `values` are its other fields."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "") or user_name()
    who = brief(f"{user}@{socket.gethostname()}", str, MAX_NAME - len("..."))
    signed = {"id": uuid.uuid4().hex, "at": time.time_ns() // 1_000_000, "who": who}
    number = len(history.events) + 1
    return Move.model_validate({**signed, "number": number, "before": history.holder, **values})


def apply_move(client: "MlflowClient", history: History, move: Move) -> History:
    """Carry out the next move of this history, and return the history with it.

    ConcurrentMove if another process claimed the number first.
    """
    from mlflow.exceptions import MlflowException

    check_signals()  # a library may have swallowed an interruption
    run_id = history.run_id
    if run_id is None:  # a model that something else has registered
        client.set_registered_model_tag(history.name, HISTORY_RUN, _create_run(client, history.name))
        # Read it again: another process may have set it too.
        run_id = str(client.get_registered_model(history.name).tags[HISTORY_RUN])
    client.set_registered_model_tag(history.name, move.key, move.model_dump_json())
    try:
        client.log_param(run_id, move.claim, move.id)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":  # the param exists with another value
            raise
        raise _concurrent(sync_aliases(client, history.name), move) from None
    synced = sync_aliases(client, history.name)
    if move not in synced.events:
        raise _concurrent(synced, move)
    return synced


def _concurrent(history: History, move: Move) -> ConcurrentMove:
    other = next((other for other in history.events if other.number == move.number), None)
    what = f"{other.who} made version {other.after} champion" if other else "the champion was moved"
    return ConcurrentMove(
        f"version {move.after} of {history.name} was not promoted: {what} at the same time; "
        "see `diffctl history` and try again"
    )


def repair(client: "MlflowClient", name: str) -> History:
    """Read the history and correct wrong aliases, with a DiffctlWarning for each.

    They are wrong after a killed move, or when somebody changed one in MLflow.
    """
    found = read_history(client, name)
    if not found.wrong_aliases:
        return found
    synced = sync_aliases(client, name)
    for alias in found.wrong_aliases.keys() - synced.wrong_aliases.keys():
        was, now = (history.aliases.get(alias, "none") for history in (found, synced))
        warnings.warn(
            f"the alias {alias} of {name} was corrected: its version was {was}, and the history has {now}",
            DiffctlWarning,
            stacklevel=2,
        )
    return synced


def sync_aliases(client: "MlflowClient", name: str) -> History:
    """Set the aliases until they agree with the log, and return the history.

    The log is read again after every change, so that the last of several concurrent processes sees all moves.
    An alias of a deleted version stays unset.
    """
    deleted: set[int] = set()
    while True:
        history = read_history(client, name)
        wrong = {alias: to for alias, to in history.wrong_aliases.items() if to not in deleted}
        if not wrong:
            return history
        for alias, version in wrong.items():
            if version is None:
                client.delete_registered_model_alias(name, alias)
            elif not _set_alias(client, name, alias, version):
                deleted.add(version)


def _set_alias(client: "MlflowClient", name: str, alias: str, version: int) -> bool:
    """Set an alias; return False if the version was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
