"""The MLflow tracking store: its address, a quiet client with short timeouts, and its own server."""

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from diffusion.layout import home
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, reason
from diffusion.system.locks import file_lock
from diffusion.system.processes import PYTHON_MODULE
from tracking.connectivity import MlflowError, check_address, check_reachable, translate_error

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"  # folder of the artifacts, next to a sqlite file

# Read by MLflow at its import (the first three) and at each request. The user's own values win.
ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

SERVER_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it doubles the time of the server's start
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}

PATH_COLUMNS = (  # of MLflow's database, with absolute paths of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(root: Path | None = None) -> str:
    """Return MLFLOW_TRACKING_URI, or the sqlite file in the project's folder `root` (default: here).

    A path is made absolute. The temporary folder of a DVC experiment uses the store of its checkout.
    """
    root = home((root or Path.cwd()).resolve())
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return sqlite_uri(root / DATABASE)
    if given.startswith(("http://", "https://")):
        check_address(given)
    elif urlsplit(given).scheme in ("", "file"):
        raise UsageError(f"MLFLOW_TRACKING_URI={given} is a folder: give sqlite:////…/{DATABASE} or http://…")
    elif given.startswith("sqlite:///") and not given.startswith("sqlite:////"):
        return f"{sqlite_uri(root)}/{given.removeprefix('sqlite:///')}"
    return given


def sqlite_uri(path: Path, driver: str = "sqlite") -> str:
    """Return the URI of a sqlite file, in which SQLAlchemy decodes `%41` and cuts at `?`."""
    return f"{driver}:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def database_file(uri: str) -> Path | None:
    """Return the file of a sqlite store; None for a server or another database."""
    path = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(path) if uri.startswith("sqlite:////") else None


def store_exists(uri: str | None = None) -> bool:
    """Return whether the store exists; creating a sqlite file takes seconds."""
    database = database_file(uri or tracking_uri())
    return database is None or database.exists()


@contextmanager
def mlflow_client(uri: str | None = None) -> Iterator["MlflowClient"]:
    """Yield a client of the store at `uri` (default: `tracking_uri()`).

    Errors of MLflow, its server or its files inside the block become an MlflowError of one sentence:
    MlflowUnavailable at once if no server answers, MlflowDenied if it requires another password.
    """
    uri = uri or tracking_uri()
    check_reachable(uri)
    _prepare_environment()
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield connect(uri)
    except (
        MlflowException,
        requests.RequestException,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        OSError,
    ) as error:
        raise translate_error(uri, error) from error


_repaired: set[Path] = set()  # each database is repaired once per process


def connect(uri: str | None = None) -> "MlflowClient":
    """Return a client of the store at `uri` (default: `tracking_uri()`); create a missing sqlite file."""
    uri = uri or tracking_uri()
    _prepare_environment()
    from mlflow.tracking import MlflowClient

    database = database_file(uri)
    if database is not None and database not in _repaired:
        if not database.exists():
            with file_lock(database.with_name(f"{database.name}.lock")):
                if not database.exists():
                    _create(database)
        _repair_artifact_paths(database)
        _repaired.add(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _prepare_environment() -> None:
    """Set the variables that MLflow reads at its first import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _create(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = database.with_name(f"{database.name}.new")
    for left in database.parent.glob(f"{unfinished.name}*"):  # of a killed creation, with its journal
        left.unlink()
    artifacts = (database.parent / ARTIFACTS).as_uri()
    store = SqlAlchemyStore(sqlite_uri(unfinished), artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    os.replace(unfinished, database)


def _repair_artifact_paths(database: Path) -> None:
    """Let the paths of a moved or copied project refer to the artifacts next to its database.

    Otherwise a moved project does not find its artifacts, and a copy writes into those of the original. The
    paths stay if only the database was copied. DiffctlWarning if any is changed.
    """
    artifacts = database.parent / ARTIFACTS
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        locations: list[tuple[str]] = []
        with suppress(sqlite3.OperationalError):  # not created yet
            query = "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'diffctl%'"
            locations = connection.execute(query).fetchall()
        parts = [location.rpartition(f"/{artifacts.name}/") for (location,) in locations if location]
        found = {f"{before}/{artifacts.name}" for before, _, _ in parts if before.startswith("file:///")}
        for old in found - {artifacts.as_uri()}:
            folder = Path(unquote(urlsplit(old).path))
            if folder.exists() and (not artifacts.exists() or os.path.samefile(folder, artifacts)):
                continue  # the database was copied alone, or the paths differ by a link
            for table, column in PATH_COLUMNS:
                change = (
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                )
                connection.execute(change, (artifacts.as_uri(), len(old) + 1, len(old) + 1, f"{old}/"))
            connection.commit()
            text = f"the project was moved or copied: {database} now refers to {artifacts}, not to {folder}"
            warnings.warn(text, DiffctlWarning, stacklevel=4)


Found = TypeVar("Found")


def find(request: Callable[..., Found], *arguments: Any) -> Found | None:
    """Return the answer to a request of the client; None if MLflow does not have what it names."""
    from mlflow.exceptions import MlflowException

    try:
        return request(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def permitted(request: Callable[..., object], *arguments: Any) -> bool:
    """Make a request of the client; return False if MLflow refuses it to this user."""
    from mlflow.exceptions import MlflowException

    try:
        request(*arguments)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return False
    return True


def readable(read: Callable[..., Found], *arguments: Any) -> tuple[Found | None, str]:
    """Return what `read` returns; None and the reason if that is missing, damaged or of an unknown format.

    MlflowError if MLflow fails.
    """
    try:
        return read(*arguments), ""
    except MlflowError:
        raise
    except DiffctlError as error:
        return None, reason(error)


def check_access() -> None:
    """Make a request that needs a user's read permission; MlflowUnavailable, MlflowDenied or MlflowError."""
    if store_exists():
        with mlflow_client() as client:
            client.search_experiments(max_results=1)


def server_environment(uri: str) -> dict[str, str]:
    """Return the variables for a server of the store at `uri`; no password is on its command line."""
    return SERVER_ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}


def server_command(port: int) -> list[str]:
    """Return the command of MLflow's own server, for this machine alone.

    Every client reads and writes the artifacts in this folder's mlartifacts/ directly. If the server served
    them, clients of the sqlite file could not read them.
    """
    command = [*PYTHON_MODULE, "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-serve-artifacts", "--default-artifact-root", Path(ARTIFACTS).absolute().as_uri()]
    return [*command, "--workers", "1", "--uvicorn-opts", "--log-level warning"]
