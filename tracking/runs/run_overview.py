"""All trainings at a glance, from runs/train/ and from MLflow, and the dead ones laid to rest."""

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
from tracking.spool.delivery_state import DeliveryState
from tracking.spool.sender import LOCK
from tracking.spool.training_status import STATES, State, TrainingStatus, list_trainings
from tracking.store import connect, database_file, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunRow:
    """A training: here (`folder`), in MLflow (`run_id`), or both. Times are milliseconds since 1970.

    `heartbeat` is its last sign of life, None for one that is not here.
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
    """Every training, the newest first, or so many; with it the error where MLflow could not be asked.

    A training that is here has the same start in MLflow: with the newest rows come the newest runs alone.
    """
    uri, problem = tracking_uri(), None
    trainings = {training.key: training for training in list_trainings(root)}
    runs: dict[str, Run] = {}
    database = database_file(uri)
    if database is None or database.exists():
        try:
            with translate_errors(uri):
                runs = {run.data.tags[KEY]: run for run in training_runs(connect(uri), newest)}
        except MlflowError as error:
            problem = error
    rows = [_row(trainings[key], runs.get(key), uri) for key in trainings]
    rows += [_remote_row(run) for key, run in runs.items() if key not in trainings]
    return sorted(rows, key=lambda row: row.started, reverse=True)[:newest], problem


def _row(training: TrainingStatus, run: "Run | None", uri: str) -> RunRow:
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
    """A training of another machine, or one whose folder is gone."""
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
class ReapedRun:
    """A dead training whose run is KILLED now; `problem` is a sentence where it could not be said so."""

    name: str
    problem: str | None = None


def reap(names: Sequence[str] = (), root: Path = TRAIN_RUNS) -> list[ReapedRun]:
    """Give the runs of dead trainings the status KILLED, what they left is delivered first.

    Without names: every training here whose process is gone. With names (see `find_run`): those runs too,
    wherever they were made; UsageError for one that is running here or has ended.
    """
    uri = tracking_uri()
    trainings = list_trainings(root)
    if names:
        return [_reap_named(name, trainings, uri) for name in names]
    dead = [training for training in trainings if training.state == "dead"]
    if dead:
        check_reachable(uri)  # once, not for every training
    reaped = [_reap_dead(training, uri) for training in dead]
    return [one for one in reaped if one is not None]


def _reap_dead(training: TrainingStatus, uri: str) -> ReapedRun | None:
    """None when it was marked already."""
    try:
        with file_lock(training.folder / LOCK, timeout=0):
            deliver(training.folder, uri)
            return ReapedRun(training.name) if mark_killed(training.folder, uri) else None
    except MlflowDenied:
        raise
    except DiffctlError as error:
        return ReapedRun(training.name, str(error))


def _reap_named(name: str, trainings: list[TrainingStatus], uri: str) -> ReapedRun:
    run = find_run(name, uri)
    if run.info.status != "RUNNING":
        raise UsageError(f"run {run.info.run_name} is not running: MLflow has it as {run.info.status}")
    here = [training for training in trainings if training.key == run.data.tags[KEY]]
    if here and here[0].state == "running":
        raise UsageError(f"run {run.info.run_name} is running here ({here[0].folder}): stop it first")
    if here and here[0].state == "dead":
        return _reap_dead(here[0], uri) or ReapedRun(run.info.run_name)
    with translate_errors(uri):
        connect(uri).set_terminated(run.info.run_id, "KILLED")
    return ReapedRun(run.info.run_name)
