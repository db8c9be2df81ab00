"""All trainings of runs/train/ and MLflow in one list, and marking dead ones as KILLED."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import file_lock
from tracking.connectivity import MlflowDenied, MlflowError, check_reachable
from tracking.keys import BEST, FINGERPRINT, KEY
from tracking.runs.run_lookup import find_run, training_runs
from tracking.spool.delivery import deliver, mark_killed
from tracking.spool.sender import LOCK
from tracking.spool.spool_status import STATES, DeliveryState, State, TrainingStatus, list_trainings
from tracking.store import mlflow_client, store_exists, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunRow:
    """A training: local (`folder`), in MLflow (`run_id`), or both. Times are milliseconds since 1970.

    `heartbeat` is its last sign of life, None if it is not local.
    """

    name: str
    state: State
    step: int | None
    steps: int | None
    started: int
    updated: int | None
    heartbeat: int | None = None
    best: str | None = None
    run_id: str | None = None
    fingerprint: str | None = None
    folder: str | None = None
    undelivered: bool = False


def list_runs(root: Path = TRAIN_RUNS, newest: int | None = None) -> tuple[list[RunRow], MlflowError | None]:
    """Return all trainings, or the `newest` ones, the newest first; with the error if MLflow failed.

    A local training has the same start time in MLflow, so the newest rows need the newest runs alone.
    """
    uri, problem = tracking_uri(), None
    runs: dict[str, Run] = {}
    if store_exists(uri):
        try:
            with mlflow_client(uri) as client:
                runs = {run.data.tags[KEY]: run for run in training_runs(client, newest)}
        except MlflowError as error:
            problem = error
    rows = [_local_row(training, runs.pop(training.key, None), uri) for training in list_trainings(root)]
    rows += [_remote_row(run) for run in runs.values()]
    return sorted(rows, key=lambda row: row.started, reverse=True)[:newest], problem


def _local_row(one: TrainingStatus, run: "Run | None", uri: str) -> RunRow:
    row = RunRow(one.name, one.state, one.step, one.steps, one.started, one.updated, one.heartbeat)
    undelivered = not DeliveryState.load(one.folder, uri).complete
    row = replace(row, fingerprint=one.folder.name, folder=str(one.folder), undelivered=undelivered)
    return replace(row, best=run.data.tags.get(BEST), run_id=run.info.run_id) if run else row


def _remote_row(run: "Run") -> RunRow:
    """Return the row of a training of another machine, or without its folder."""
    info, tags, steps = run.info, run.data.tags, run.data.params.get("train.steps")
    state = STATES.get(info.status, "running")
    row = RunRow(info.run_name, state, None, int(steps) if steps else None, info.start_time, info.end_time)
    return replace(row, best=tags.get(BEST), run_id=info.run_id, fingerprint=tags.get(FINGERPRINT))


@dataclass(frozen=True)
class KilledRun:
    """A dead training with its run KILLED now, or the `problem` that prevented it."""

    name: str
    problem: str | None = None


def reap(names: Sequence[str] = ()) -> list[KilledRun]:
    """Deliver the spools of dead trainings and set their runs to KILLED.

    Without names, do so for every local training without a process. With names (see `find_run`), for those
    runs too, wherever they were trained; UsageError for one that is running here or has ended.
    """
    uri, trainings = tracking_uri(), list_trainings()
    if names:
        return [_reap_named(name, trainings, uri) for name in names]
    dead = [training for training in trainings if training.state == "dead"]
    if dead:
        check_reachable(uri)  # once, not for every training
    return [killed for training in dead if (killed := _reap_dead(training, uri))]


def _reap_dead(training: TrainingStatus, uri: str) -> KilledRun | None:
    """Return None if it was KILLED already."""
    try:
        with file_lock(training.folder / LOCK, timeout=0):
            deliver(training.folder, uri)
            return KilledRun(training.name) if mark_killed(training.folder, uri) else None
    except MlflowDenied:
        raise
    except DiffctlError as error:
        return KilledRun(training.name, str(error))


def _reap_named(name: str, trainings: list[TrainingStatus], uri: str) -> KilledRun:
    run = find_run(name, uri)
    if run.info.status != "RUNNING":
        raise UsageError(f"run {run.info.run_name} is not running: its status in MLflow is {run.info.status}")
    local = next((training for training in trainings if training.key == run.data.tags[KEY]), None)
    if local and local.state == "running":
        raise UsageError(f"run {run.info.run_name} is running here ({local.folder}): stop it first")
    if local and local.state == "dead":
        return _reap_dead(local, uri) or KilledRun(run.info.run_name)
    with mlflow_client(uri) as client:
        client.set_terminated(run.info.run_id, "KILLED")
    return KilledRun(run.info.run_name)
