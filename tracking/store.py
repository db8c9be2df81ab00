"""Where MLflow keeps things, and a client that is quiet, bounded in time and safe to start side by side."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from diffusion.layout import home
from diffusion.system.errors import DiffctlError, UsageError, is_disk_full
from diffusion.system.locks import file_lock
from tracking.connectivity import (
    DENIED,
    UNAVAILABLE,
    MlflowError,
    MlflowUnavailable,
    check_address,
    check_reachable,
    denied,
    redact_uri,
    unavailable,
)
from tracking.keys import KEY, REGISTRY_EXPERIMENT, experiment_name
from tracking.pages.notes import experiment_note, note_tags, registry_note

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

# Read by mlflow when it is imported (the first three) and at each request. What the user set stays.
ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# What MLflow's UI calls a training, so that it shows curves first and no traces.
KIND = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri(root: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file in the project's folder `root` (default: here); absolute.

    A temporary folder of a DVC experiment has its checkout's.
    """
    root = home((root or Path.cwd()).resolve())
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{root / DATABASE}"
    if given.startswith(("http://", "https://")):
        check_address(given)
        return given
    scheme = urlsplit(given).scheme
    if scheme in ("", "file"):
        raise UsageError(
            f"MLFLOW_TRACKING_URI={given} is a folder, which MLflow no longer writes to: "
            f"give sqlite:////path/to/{DATABASE} or a server's http://…, or unset it"
        )
    if scheme == "sqlite" and given.startswith("sqlite:///") and not given.startswith("sqlite:////"):
        return f"sqlite:///{root / given.removeprefix('sqlite:///')}"
    return given


def database_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for a server or another database."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:////") else None


def connect(uri: str | None = None) -> "MlflowClient":
    """A client of the store at `uri` (default: `tracking_uri()`), made first where it is a sqlite file.

    MLflow's own first-time creation is not safe side by side, nor when it is killed: here one process makes
    the database beside its place while the others wait. No server is asked yet.
    """
    uri = uri or tracking_uri()
    _prepare_environment()
    from mlflow.tracking import MlflowClient

    database = database_file(uri)
    if database is not None and not database.exists():
        with file_lock(database.with_name(f"{database.name}.lock")):
            if not database.exists():
                _create(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _prepare_environment() -> None:
    """Before the first import of mlflow, which reads it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _create(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = database.with_name(f"{database.name}.new")
    for left in database.parent.glob(f"{unfinished.name}*"):  # by a creation that was killed, its journal too
        left.unlink()
    store = SqlAlchemyStore(f"sqlite:///{unfinished}", _artifacts(database).as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    os.replace(unfinished, database)


def _artifacts(database: Path) -> Path:
    return database.parent / ARTIFACTS


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, its server or its files raise inside the block into one sentence, an MlflowError.

    MlflowAway at once where no server answers, and MlflowRefused where one wants another password.
    """
    check_reachable(uri)
    _prepare_environment()
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise _failure(uri, error) from error


def _failure(uri: str, error: Exception) -> MlflowError:
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    status: int | None = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    said, by_database = reason(error).replace(uri, redact_uri(uri)), database_file(uri) is not None
    for cause in _chain(error):
        if isinstance(cause, requests.RequestException):
            status = getattr(cause.response, "status_code", None)
            if status is None:
                retried = isinstance(cause, requests.exceptions.RetryError)
                return unavailable(uri, "only with errors" if retried else "the connection broke")
        elif isinstance(cause, sqlalchemy.exc.OperationalError) and (not by_database or "locked" in said):
            return MlflowUnavailable(f"MLflow at {redact_uri(uri)}: {said}")
    if status in DENIED:
        return denied(uri)
    if status in UNAVAILABLE and not _is_full(error):
        return unavailable(uri, f"HTTP {status}")
    return MlflowError(f"MLflow at {redact_uri(uri)}: {said}{': make room' if _is_full(error) else ''}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_full(error: Exception) -> bool:
    """Whether a disk was full, also where MLflow or its database tells of it in words."""
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")
    return is_disk_full(error) or any(word in str(error) for word in words)


def reason(error: Exception) -> str:
    """The first line of what an error says, all where that announces the rest; its kind where it is mute."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join([first, *more]) if first.endswith(":") else first


def ensure_experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment, made when it is missing; DiffctlError when it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = database_file(client.tracking_uri)
        location = (_artifacts(database) / name).as_uri() if database else None
        try:
            of_data = experiment_note(name.removeprefix(experiment_name("")))
            tags = KIND | note_tags(registry_note() if name == REGISTRY_EXPERIMENT else of_data)
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was first
            assert experiment is not None, "MLflow said that it exists"
    if experiment.lifecycle_stage != "active":
        raise DiffctlError(
            f"the experiment {name} was deleted in MLflow: bring it back with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def log_folder(client: "MlflowClient", run_id: str, folder: Path, place: str) -> None:
    """Make the folder's files the run's artifacts below `place`: all of them, or after an error none."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        client.log_artifacts(run_id, str(folder), place)
    except BaseException:
        with suppress(Exception):  # it is the first error that is told
            repository = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
            repository.delete_artifacts(place)  # type: ignore[no-untyped-call]
        raise


def find_by_tags(client: "MlflowClient", experiment_ids: list[str], tags: dict[str, str]) -> "list[Run]":
    """The runs whose tags have these values, the oldest first; deleted ones left out."""
    terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    return search_runs(client, experiment_ids, " and ".join(terms))


def search_runs(client: "MlflowClient", experiment_ids: list[str], query: str) -> "list[Run]":
    """Every active run that MLflow's `query` selects, the oldest first, whatever their number."""
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiment_ids, query, order_by=order, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def newest_runs(client: "MlflowClient", experiment_ids: list[str], query: str, count: int) -> "list[Run]":
    """The active runs that MLflow's `query` selects, the newest first, at most so many."""
    order = ["attributes.start_time DESC", "attributes.run_id ASC"]
    return list(client.search_runs(experiment_ids, query, order_by=order, max_results=count))


def ensure_run(client: "MlflowClient", experiment_id: str, key: str, name: str, start_time: int) -> str:
    """The id of the run of the training `key`, made when it is missing."""
    found = find_by_tags(client, [experiment_id], {KEY: key})
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, start_time=start_time, tags={KEY: key}, run_name=name)
    return str(run.info.run_id)
