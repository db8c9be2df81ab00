"""Runs of trainings: found by identity or name, listed together with those in runs/train/, and named."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import PROFILES, RUN, TRAIN_RUNS
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, file_lock
from diffusion.system.params import flatten_fields
from diffusion.train.checkpoint.run_record import TrainingIdentity
from tracking.connectivity import MlflowDenied, MlflowError, check_reachable
from tracking.experiments import create_finished_run, ensure_experiment, search_runs
from tracking.keys import BEST, FINGERPRINT, KEY, experiment_name, title_of
from tracking.mlflow_pages import experiment_link
from tracking.spool.delivery import RunDeleted, deliver, mark_killed
from tracking.spool.sender import LOCK
from tracking.spool.spool_status import (
    STATES,
    DeliveryState,
    State,
    TrainingStatus,
    list_trainings,
    read_status,
)
from tracking.store import mlflow_client, store_exists, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from diffusion.config import Config

SENDER_SECONDS = 15.0  # to wait for a running sender
SECTIONS = ("data", "model", "process", "train")  # the sections of params.yaml that decide a training
MAX_NAME_LENGTH = 60  # characters


def read_identity() -> TrainingIdentity:
    """Read models/run.json; UsageError if it is missing, DiffctlError if it is damaged."""
    try:
        return read_checksummed_json(RUN, TrainingIdentity)
    except FileNotFoundError:
        raise UsageError(f"{RUN} is missing: get it by `dvc pull` or `diffctl run`") from None


def ensure_training_run(client: "MlflowClient", identity: TrainingIdentity, data: str) -> str:
    """Return the id of a training's run on a data set; create it if MLflow lacks it with its spool."""
    folder = TRAIN_RUNS / identity.fingerprint
    training = read_status(folder)
    if training is not None and training.key == identity.key:
        with contextlib.suppress(LockBusy), file_lock(folder / LOCK, SENDER_SECONDS):
            deliver(folder, client.tracking_uri)
    if found := training_runs(client, query=f"tags.`{KEY}` = '{identity.key}'"):
        return str(found[0].info.run_id)
    # The model was pulled from another machine, with another store.
    experiment = ensure_experiment(client, experiment_name(title_of(data)))
    name = f"{data}-{identity.fingerprint[:8]}"
    tags = {KEY: identity.key, FINGERPRINT: identity.fingerprint}
    return create_finished_run(client, experiment, name, tags)


def training_runs(
    client: "MlflowClient", newest: int | None = None, query: str = f"tags.`{KEY}` LIKE '%'"
) -> "list[Run]":
    """Return the runs of trainings, the oldest first; or the `newest` ones, the newest first."""
    experiments = client.search_experiments(filter_string=f"name LIKE '{experiment_name('%')}'")
    ids = [experiment.experiment_id for experiment in experiments]
    return search_runs(client, ids, query, newest) if ids else []


def newest_experiment_link(address: str, uri: str) -> str:
    """Return the page of the newest training's experiment at `address`, or the address if there is none."""
    with contextlib.suppress(MlflowError), mlflow_client(uri) as client:
        for run in training_runs(client, newest=1):
            return experiment_link(address, run.info.experiment_id)
    return address


def find_run(name: str, uri: str | None = None) -> "Run":
    """Return the run with this id, beginning of an id, name, fingerprint or key; UsageError if not one."""
    runs: list[Run] = []
    if store_exists(uri):
        with mlflow_client(uri) as client:
            runs = training_runs(client)
    exact = []
    for run in runs:
        tags = run.data.tags
        if name in (run.info.run_id, run.info.run_name, tags.get(FINGERPRINT), tags[KEY]):
            exact.append(run)
    found = exact or [run for run in runs if name and run.info.run_id.startswith(name)]
    if not found:
        raise UsageError(f"there is no run {name!r} in MLflow: `diffctl runs` lists them")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id[:8] for run in found)
        raise UsageError(f"{name!r} matches several runs: give one of the ids {ids}")
    return found[0]


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
    return RunRow(
        name=one.name,
        state=one.state,
        step=one.step,
        steps=one.steps,
        started=one.started,
        updated=one.updated,
        heartbeat=one.heartbeat,
        best=run.data.tags.get(BEST) if run else None,
        run_id=run.info.run_id if run else None,
        fingerprint=one.folder.name,
        folder=str(one.folder),
        undelivered=not DeliveryState.load(one.folder, uri).complete,
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
        best=run.data.tags.get(BEST),
        run_id=run.info.run_id,
        fingerprint=run.data.tags.get(FINGERPRINT),
    )


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
    """Return None if it was KILLED already, or its run was deleted."""
    try:
        with file_lock(training.folder / LOCK, timeout=0):
            deliver(training.folder, uri)
            return KilledRun(training.name) if mark_killed(training.folder, uri) else None
    except MlflowDenied:
        raise
    except RunDeleted:
        return None
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


def training_name(config: "Config", profiles: Path | None = None) -> str:
    """Return a name such as `channels64-lr0.001-digits`: differing fields and a profile of the data set.

    MLflow shows the beginning of a long name: as many fields as fit, and `+3` counts three more. The profile
    is the nearest one, without any the data set.
    """
    from diffusion.config import load

    values = _training_fields(config)
    name = str(values["data.name"])
    differing: list[str] | None = None
    for path in sorted((profiles or PROFILES).glob("*.yaml")):
        with contextlib.suppress(DiffctlError):  # not a profile
            profile = _training_fields(load(path))
            fields = [one for one in {**values, **profile} if profile.get(one) != values.get(one)]
            if "data.name" not in fields and (differing is None or len(fields) < len(differing)):
                name, differing = path.stem, fields
    parts = []
    for field in differing or ():
        label = field.removesuffix(".rate").rpartition(".")[2]  # the rate of a schedule has its name
        parts.append(f"{label}{_short(values.get(field))}")
    for count in range(len(parts), -1, -1):
        left = [f"+{len(parts) - count}"] if count < len(parts) else []
        title = "-".join([*parts[:count], *left, name])
        if len(title) <= MAX_NAME_LENGTH:
            return title
    return name[:MAX_NAME_LENGTH]


def _training_fields(config: "Config") -> dict[str, Any]:
    """Return the fields that decide a training, without paths, logging intervals and hardware."""
    from diffusion.train.plan import HARDWARE_FIELDS, OBSERVATION_FIELDS

    excluded = {"data.path", *(f"train.{name}" for name in OBSERVATION_FIELDS | HARDWARE_FIELDS)}
    values = flatten_fields(config.model_dump(mode="json", include=set(SECTIONS)))
    return {name: value for name, value in values.items() if name not in excluded}


def _short(value: Any) -> str:
    """Return a value as a part of a name: lists joined by dots, `+` for True, `-` for False and None."""
    if isinstance(value, bool) or value is None:
        return "+" if value else "-"
    if isinstance(value, list | tuple):
        return ".".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
