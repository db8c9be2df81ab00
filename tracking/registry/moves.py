"""Moving the champion: first the record, then the claim that makes it count, then the alias, then a look.

Killed at any point it leaves something whole. Before the claim nothing has moved. After it the move has
happened, though the alias may not show it yet: the next command repairs the alias (`repair`). Of two at
once the second one's claim is refused by MLflow, and it is told.
"""

import getpass
import os
import socket
import time
import uuid
import warnings
from typing import TYPE_CHECKING

from diffusion.system.errors import DiffctlWarning, TemporaryError
from diffusion.system.limits import MAX_NAME
from diffusion.system.section import brief
from diffusion.system.signals import check_signals
from tracking.connectivity import MlflowError
from tracking.keys import HISTORY_RUN, REGISTRY_EXPERIMENT
from tracking.registry.champion_log import History, Move, format_number, read_history
from tracking.store import ensure_experiment

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class ConcurrentMove(MlflowError, TemporaryError):
    """Somebody else moved the champion at the same time; his move stands, ours never happened."""


def ensure_model(client: "MlflowClient", name: str) -> None:
    """Make the registered model where it is missing, with the run that says which moves count."""
    from mlflow.exceptions import MlflowException

    if model_exists(client, name):
        return
    run_id = _make_run(client, name)
    try:
        client.create_registered_model(name, tags={HISTORY_RUN: run_id})
    except MlflowException as error:
        client.delete_run(run_id)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
            raise


def model_exists(client: "MlflowClient", name: str) -> bool:
    """Whether there is a registered model of this name."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _make_run(client: "MlflowClient", name: str) -> str:
    run_id = client.create_run(ensure_experiment(client, REGISTRY_EXPERIMENT), run_name=name).info.run_id
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def _run_of(client: "MlflowClient", history: History) -> str:
    """The run that says which moves count, made for a model that something else has registered."""
    if history.run_id is not None:
        return history.run_id
    client.set_registered_model_tag(history.name, HISTORY_RUN, _make_run(client, history.name))
    return str(client.get_registered_model(history.name).tags[HISTORY_RUN])  # also if another was quicker


def next_move(history: History, **values: object) -> Move:
    """The event that follows on this history: numbered and signed; `values` are its other fields."""
    signed = {"id": uuid.uuid4().hex, "at": time.time_ns() // 1_000_000, "who": current_user()}
    return Move.model_validate(
        {**signed, "number": len(history.events) + 1, "before": history.holder, **values}
    )


def current_user() -> str:
    """Who moves it: the user that MLflow knows, else this machine's, and the machine."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if not user:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = f"user {os.getuid()}"
    return brief(f"{user}@{socket.gethostname()}", str, MAX_NAME - len("..."))


def apply_move(client: "MlflowClient", history: History, event: Move) -> History:
    """Carry the event out, the next one of this history; returns the history with it.

    Contended where somebody else's came first.
    """
    from mlflow.exceptions import MlflowException

    check_signals()  # nothing is promoted after an interruption that a library has swallowed
    run_id = _run_of(client, history)
    client.set_registered_model_tag(history.name, event.key, event.model_dump_json())
    try:
        client.log_param(run_id, format_number(event.number), event.id)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":  # a param that stands can get no other value
            raise
        raise _contended(sync_aliases(client, history.name), event) from None
    settled = sync_aliases(client, history.name)
    if event not in settled.events:
        raise _contended(settled, event)
    return settled


def _contended(history: History, event: Move) -> ConcurrentMove:
    theirs = next((other for other in history.events if other.number == event.number), None)
    said = (
        f"{theirs.who} made version {theirs.after} champion" if theirs else "somebody else moved the champion"
    )
    return ConcurrentMove(
        f"version {event.after} of {history.name} was not promoted: {said} at the same time; "
        "see `diffctl history` and try again"
    )


def repair(client: "MlflowClient", name: str) -> History:
    """The history, with aliases that point elsewhere put right, and told as a DiffctlWarning.

    They do after a move that was killed, or when somebody has moved one in MLflow by hand.
    """
    found = read_history(client, name)
    if not found.wrong_aliases:
        return found
    settled = sync_aliases(client, name)
    for alias in found.wrong_aliases.keys() - settled.wrong_aliases.keys():
        pointed, points = (_pointing(history.aliases.get(alias)) for history in (found, settled))
        told = (
            f"the alias {alias} of {name} pointed at {pointed}, and its history has {points} there: put right"
        )
        warnings.warn(told, DiffctlWarning, stacklevel=2)
    return settled


def _pointing(version: int | None) -> str:
    return "nothing" if version is None else f"version {version}"


def sync_aliases(client: "MlflowClient", name: str) -> History:
    """Bring the aliases where the record has them, and look until they are there; returns the history.

    Every change of an alias is followed by a look, so that of several at once the last one sees all. An alias
    for a version that is deleted stays away.
    """
    deleted: set[int] = set()
    while True:
        history = read_history(client, name)
        wrong = {alias: to for alias, to in history.wrong_aliases.items() if to not in deleted}
        if not wrong:
            return history
        for alias, version in wrong.items():
            if not _point(client, name, alias, version) and version is not None:
                deleted.add(version)


def _point(client: "MlflowClient", name: str, alias: str, version: int | None) -> bool:
    """Point an alias at a version, or nowhere; False when that version is deleted."""
    from mlflow.exceptions import MlflowException

    if version is None:
        client.delete_registered_model_alias(name, alias)
        return True
    try:
        client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
