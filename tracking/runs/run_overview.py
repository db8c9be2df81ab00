"""All trainings of runs/train/ and MLflow in one list, and marking dead ones as KILLED."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    heartbeat: int | None
    best: str | None
    run_id: str | None
    fingerprint: str | None
    folder: str | None
    undelivered: bool


def list_runs(root: Path = TRAIN_RUNS, newest: int | None = None) -> tuple[list[RunRow], MlflowError | None]:
    """Return all trainings, or the `newest` ones, the newest first; with the error if MLflow failed.

    A local training has the same start time in MLflow, so the newest rows need the newest runs alone.
    """
    uri, problem = tracking_uri(), None
    trainings = {training.key: training for training in list_trainings(root)}
    runs: dict[str, Run] = {}
    if store_exists(uri):
        try:
            with mlflow_client(uri) as client:
                runs = {run.data.tags[KEY]: run for run in training_runs(client, newest)}
        except MlflowError as error:
            problem = error
    rows = [_local_row(trainings[key], runs.get(key), uri) for key in trainings]
    rows += [_remote_row(run) for key, run in runs.items() if key not in trainings]
    return sorted(rows, key=lambda row: row.started, reverse=True)[:newest], problem


def _local_row(training: TrainingStatus, run: "Run | None", uri: str) -> RunRow:
    return RunRow(
        name=training.name,
        state=training.state,
        step=training.step,
        steps=training.steps,
        started=training.started,
        updated=training.updated,
        heartbeat=training.heartbeat,
        best=run.data.tags.get(BEST) if run else None,
        run_id=run.info.run_id if run else None,
        fingerprint=training.fingerprint,
        folder=str(training.folder),
        undelivered=not DeliveryState.load(training.folder, uri).complete,
    )


def _remote_row(run: "Run") -> RunRow:
    """Return the row of a training of another machine, or without its folder."""
    steps = run.data.params.get("train.steps")
    return RunRow(
        name=run.info.run_name,
        state=STATES.get(run.info.status, "running"),
        step=None,
        steps=int(steps) if steps else None,
        started=run.info.start_time,
        updated=run.info.end_time,
        heartbeat=None,
        best=run.data.tags.get(BEST),
        run_id=run.info.run_id,
        fingerprint=run.data.tags.get(FINGERPRINT),
        folder=None,
        undelivered=False,
    )


@dataclass(frozen=True)
class KilledRun:
    """A dead training with its run KILLED now, or the `problem` that prevented it."""

    name: str
    problem: str | None = None


def reap(names: Sequence[str] = (), root: Path = TRAIN_RUNS) -> list[KilledRun]:
    """Deliver the spools of dead trainings and set their runs to KILLED.

    Without names, do so for every local training without a process. With names (see `find_run`), for those
    runs too, wherever they were trained; UsageError for one that is running here or has ended.
    """
    uri = tracking_uri()
    trainings = list_trainings(root)
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
