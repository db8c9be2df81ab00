"""Finding runs: the one that a model came from, and the one that a person names."""

import contextlib
import http.client
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from diffusion.layout import TRAIN_RUNS
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, file_lock
from diffusion.system.section import Section
from tracking.connectivity import TIMEOUT_SECONDS, MlflowError
from tracking.experiments import ensure_experiment, ensure_run, find_by_tags, newest_runs, search_runs
from tracking.keys import FINGERPRINT, KEY, experiment_name
from tracking.mlflow_pages import LOCAL, experiment_link
from tracking.spool.delivery import deliver
from tracking.spool.sender import LOCK
from tracking.spool.training_status import read_status
from tracking.store import connect, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SENDER_SECONDS = 15.0  # for a sender that is still at it


class TrainingIdentity(Section):
    """What models/run.json says of the model beside it: its training's key and fingerprint."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


def read_identity(path: Path) -> TrainingIdentity:
    """Read models/run.json; UsageError where it is missing, DiffctlError where it says nothing."""
    try:
        return read_checksummed_json(path, TrainingIdentity)
    except FileNotFoundError:
        raise UsageError(f"{path} is not here: `dvc pull` brings it, or `diffctl run` makes it") from None
    except DiffctlError as error:
        raise DiffctlError(
            f"{path} does not say which training made the model ({error}): train again"
        ) from None


def ensure_training_run(client: "MlflowClient", identity: TrainingIdentity, data_name: str) -> str:
    """The id of the run of a training, made when MLflow does not know it.

    What the training's spool still holds is delivered first, so that an outage leaves no second run behind.
    """
    folder = TRAIN_RUNS / identity.fingerprint
    training = read_status(folder)
    if training is not None and training.key == identity.key:
        with (
            contextlib.suppress(LockBusy),
            file_lock(folder / LOCK, SENDER_SECONDS),
        ):  # busy: it is on its way
            deliver(folder, client.tracking_uri)
    experiment = ensure_experiment(client, experiment_name(data_name))
    if found := find_by_tags(client, [experiment], {KEY: identity.key}):
        return str(found[0].info.run_id)
    # A model that was pulled from another machine, whose MLflow is not ours.
    name = f"{data_name}-{identity.fingerprint[:8]}"
    run_id = ensure_run(client, experiment, identity.key, name, time.time_ns() // 1_000_000)
    client.set_tag(run_id, FINGERPRINT, identity.fingerprint)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def training_runs(client: "MlflowClient", newest: int | None = None) -> "list[Run]":
    """Every training's run, the oldest first; of so many the newest alone, those first."""
    experiments = client.search_experiments(filter_string=f"name LIKE '{experiment_name('%')}'")
    ids = [experiment.experiment_id for experiment in experiments]
    query = f"tags.`{KEY}` LIKE '%'"
    if not ids:
        return []
    return newest_runs(client, ids, query, newest) if newest else search_runs(client, ids, query)


def newest_experiment_link(address: str, uri: str) -> str:
    """Where MLflow's UI at `address` shows the experiment of the newest training in the store at `uri`.

    The address alone where there is none yet, or a server does not answer. A local store is made first.
    """
    try:
        with translate_errors(uri):
            runs = training_runs(connect(uri), newest=1)
    except MlflowError:
        return address
    return experiment_link(address, runs[0].info.experiment_id) if runs else address


def find_ui(run_id: str) -> str:
    """Where `diffctl ui` shows this run in a browser; DiffctlError where it does not."""
    asked = f"{LOCAL}/api/2.0/mlflow/runs/get?run_id={run_id}"
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_SECONDS):
            return LOCAL
    except (OSError, http.client.HTTPException):
        raise DiffctlError(
            f"no MLflow shows these runs at {LOCAL}: start it by `diffctl ui`, and do this again"
        ) from None


def find_run(name: str, uri: str | None = None) -> "Run":
    """The training's run with this id, unique beginning of an id, name or fingerprint.

    UsageError when there is none, or more than one.
    """
    uri = uri or tracking_uri()
    with translate_errors(uri):
        runs = training_runs(connect(uri))
    exact = [
        run for run in runs if name in (run.info.run_id, run.info.run_name, run.data.tags.get(FINGERPRINT))
    ]
    found = exact or [run for run in runs if name and run.info.run_id.startswith(name)]
    if not found:
        raise UsageError(f"there is no run {name!r} in MLflow: `diffctl runs` lists them")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id[:8] for run in found)
        raise UsageError(f"{name!r} means more than one run: give one of the ids {ids}")
    return found[0]
