"""Experiments, runs, searches and checkpoints in MLflow: found by names and tags, and created once."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.files import sha256_file
from diffusion.system.locks import file_lock
from tracking.keys import FILE_SHA256, KEY, PARENT, SEARCH, SEARCH_ROOT, experiment_name
from tracking.mlflow_pages import experiment_note, note_tags
from tracking.store import ARTIFACTS, database_file, mlflow_client, permitted

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient
    from PIL import Image

# The UI of MLflow shows curves first, and no traces, for this kind of experiment.
KIND = {"mlflow.experimentKind": "custom_model_development"}
MAX_RUNS = 50_000  # MLflow's limit of an answer
SEARCH_TABLE = "search.json"
SEARCH_LOCK = TRAIN_RUNS / "search.lock"  # concurrent trials create one run
CHECKPOINT = "diffctl-checkpoint"  # the type of a LoggedModel


def ensure_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment, created if it is missing; DiffctlError if it was deleted."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = database_file(client.tracking_uri)
        location = (database.parent / ARTIFACTS / name).as_uri() if database else None
        tags = KIND | note_tags(experiment_note(name))
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process created it
            assert experiment is not None, "MLflow reported that it exists"
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise DiffctlError(f"the experiment {name} was deleted in MLflow: restore it by `{restore}`")
    return str(experiment.experiment_id)


def ensure_run(client: "MlflowClient", experiment_id: str, key: str, name: str, start_time: int) -> str:
    """Return the id of the run of the training `key`, created if it is missing."""
    if found := find_by_tags(client, [experiment_id], {KEY: key}):
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, start_time=start_time, tags={KEY: key}, run_name=name)
    return str(run.info.run_id)


def ensure_finished_run(
    client: "MlflowClient", experiment_id: str, name: str, identity: dict[str, str], tags: dict[str, str]
) -> str:
    """Return the id of the run with the tags `identity`, in which nothing is executed.

    It is created, with the further `tags`, if it is missing.
    """
    if found := find_by_tags(client, [experiment_id], identity):
        return str(found[0].info.run_id)
    return create_finished_run(client, experiment_id, name, identity | tags)


def create_finished_run(client: "MlflowClient", experiment_id: str, name: str, tags: dict[str, str]) -> str:
    """Create a run that nothing is executed in; return its id."""
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def log_changed_metrics(client: "MlflowClient", run_id: str, values: Mapping[str, float | None]) -> None:
    """Log the metrics that the run does not have with these values."""
    logged = client.get_run(run_id).data.metrics
    for name, value in values.items():
        if value is not None and logged.get(name) != value:
            client.log_metric(run_id, name, value)


def find_by_tags(client: "MlflowClient", experiment_ids: list[str], tags: dict[str, str]) -> "list[Run]":
    """Return the active runs with these tags, the oldest first."""
    terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    return search_runs(client, experiment_ids, " and ".join(terms))


def search_runs(
    client: "MlflowClient", experiment_ids: list[str], query: str, newest: int | None = None
) -> "list[Run]":
    """Return the active runs that match `query`, the oldest first; or the `newest`, the newest first."""
    order = [f"attributes.start_time {'DESC' if newest else 'ASC'}", "attributes.run_id ASC"]
    count = newest or MAX_RUNS
    return list(client.search_runs(experiment_ids, query, order_by=order, max_results=count))


def log_folder(client: "MlflowClient", run_id: str, folder: Path, destination: str) -> None:
    """Log the folder's files as artifacts below `destination`; after an error none of them is left."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        client.log_artifacts(run_id, str(folder), destination)
    except BaseException:
        with suppress(Exception):  # the first error is reported
            repository = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
            repository.delete_artifacts(destination)  # type: ignore[no-untyped-call]
        raise


def log_picture(
    client: "MlflowClient", run_id: str, place: tuple[str, int, int], picture: "Image.Image"
) -> None:
    """Log a picture at `place` (series, step, time) unless the run has one there: MLflow would keep both."""
    key, step, time = place
    series = r"\W".join(map(re.escape, key.split("/")))
    # The thumbnail, which is logged last.
    logged = re.compile(rf"images/{series}\Wstep\W{step}\Wtimestamp\W{time}\W.*\.webp")
    if not any(logged.fullmatch(file.path) for file in client.list_artifacts(run_id, "images")):
        client.log_image(run_id, picture, key=key, step=step, timestamp=time, synchronous=True)


def join_search(client: "MlflowClient", run_id: str, key: str) -> None:
    """Make a trial's run a child of its search's run."""
    run = client.get_run(run_id)
    name = run.data.tags.get(SEARCH, "search")
    client.set_tag(run_id, PARENT, _ensure_search(client, run.info.experiment_id, key, name))


def log_search(key: str, name: str, title: str, table: dict[str, Any], best: dict[str, float]) -> str:
    """Log a search's table, and the best values as metrics, once; return the run's id."""
    with mlflow_client() as client:
        experiment = ensure_experiment(client, experiment_name(title))
        run_id = _ensure_search(client, experiment, key, name)
        client.log_dict(run_id, table, SEARCH_TABLE)
        log_changed_metrics(client, run_id, best)
    return run_id


def _ensure_search(client: "MlflowClient", experiment: str, key: str, name: str) -> str:
    """Return the id of the search's run, created if it is missing; it has no key, as it is no training."""
    with file_lock(SEARCH_LOCK):
        return ensure_finished_run(client, experiment, f"search {name}", {SEARCH_ROOT: key}, {SEARCH: name})


def ensure_checkpoint(client: "MlflowClient", run_id: str, step: int, path: Path) -> str:
    """Return the id of the step's LoggedModel, created from the file at `path` if it is missing."""
    from mlflow.entities import LoggedModelOutput

    found = _find_checkpoint(client, run_id, step)
    if found is None:
        found = client.create_logged_model(
            experiment_id=client.get_run(run_id).info.experiment_id,
            name=_checkpoint_name(step),
            source_run_id=run_id,
            tags={FILE_SHA256: sha256_file(path)},
            params={"step": str(step)},
            model_type=CHECKPOINT,
        )
    if found.status != "READY":
        client.log_model_artifact(found.model_id, str(path))
        client.log_outputs(run_id, [LoggedModelOutput(found.model_id, step)])
        client.finalize_logged_model(found.model_id, "READY")
    return str(found.model_id)


def drop_checkpoint(client: "MlflowClient", run_id: str, step: int) -> bool:
    """Delete the step's LoggedModel if it exists; its scores stay in the run's curves.

    Return False if the user may not delete it: only the experiment's creator or an admin may.
    """
    found = _find_checkpoint(client, run_id, step)
    return found is None or permitted(client.delete_logged_model, found.model_id)


def _find_checkpoint(client: "MlflowClient", run_id: str, step: int) -> Any:
    experiment = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}' AND name = '{_checkpoint_name(step)}'"
    found = client.search_logged_models([experiment], filter_string=query)
    return found[0] if found else None


def _checkpoint_name(step: int) -> str:
    return f"step-{step:09d}"
