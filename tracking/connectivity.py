"""Checks whether MLflow is reachable, and the errors for the ways in which it fails."""

import errno
import os
import re
from urllib.parse import urlsplit

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError, first_line, is_disk_full

TIMEOUT_SECONDS = 5.0  # per IP address; a host name may have two, and the first may not answer

UNAVAILABLE = {429, 502, 503, 504}  # status codes of an overloaded server, and of a proxy without one
DENIED = {401, 403}
# Database drivers have no error code for a wrong user, password or database name, only a text.
DENIED_TEXT = re.compile(
    "authentication failed|no password supplied|does not exist|permission denied|no pg_hba.conf entry"
    "|Access denied|Unknown database"
)


class MlflowError(DiffctlError):
    """A request to MLflow failed; a later try may succeed."""


class MlflowUnavailable(MlflowError, TemporaryError):
    """MLflow does not answer."""


class MlflowDenied(MlflowError):
    """MLflow requires a login, or the user lacks a permission.

    It ends a command as a UsageError does, but is no subclass: that error is for missing models and runs.
    """

    exit_code = UsageError.exit_code
    kind = UsageError.kind


def redact_uri(uri: str) -> str:
    """Return the URI without user name and password, nor the options of a database that contain one."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "an invalid address"
    host = parts.netloc.rpartition("@")[2]
    redacted = uri.replace(parts.netloc, host, 1) if host != parts.netloc else uri
    return redacted.replace(f"?{parts.query}", "", 1) if "password=" in parts.query else redacted


def unavailable(uri: str, why: str) -> MlflowUnavailable:
    """Return the error for a store that does not answer."""
    return MlflowUnavailable(f"MLflow does not answer at {redact_uri(uri)} ({why}): try again later")


def check_address(uri: str, variable: str = "MLFLOW_TRACKING_URI", form: str = "http://HOST:PORT") -> None:
    """Raise UsageError if a server's address, the value of `variable`, has no host or an invalid port."""
    try:
        parts = urlsplit(uri)
        valid = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{variable} is not the address of a server: give {form}")


_answered: set[str] = set()  # each store is checked once per process


def check_reachable(uri: str) -> None:
    """Raise MlflowUnavailable if no server or database answers at `uri` within seconds.

    MLflow's own client detects an absent server after half a minute, an absent database after two minutes.
    Any HTTP answer counts as reachable, and sqlite files are not checked. MlflowDenied if a database refuses
    the login; UsageError if the address is invalid or the database's driver is not installed.
    """
    if uri in _answered or uri.startswith("sqlite:"):
        return
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    else:
        _check_database(uri)
    _answered.add(uri)


def _check_server(uri: str) -> None:
    import requests

    check_address(uri)
    try:
        answer = requests.get(f"{redact_uri(uri).rstrip('/')}/health", timeout=TIMEOUT_SECONDS)
    except requests.exceptions.SSLError:
        return  # MLflow's client may have its own certificates
    except requests.RequestException as error:
        is_late = isinstance(error, requests.Timeout)
        raise unavailable(uri, f"not within {TIMEOUT_SECONDS:g} s" if is_late else "no connection") from None
    if answer.status_code in UNAVAILABLE:
        raise unavailable(uri, f"HTTP {answer.status_code}")


def _check_database(uri: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError

    has_timeout = uri.startswith(("postgresql", "mysql"))
    options = {"connect_timeout": int(TIMEOUT_SECONDS)} if has_timeout else {}
    try:
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=options).connect().close()
    except ModuleNotFoundError as error:
        raise UsageError(f"MLFLOW_TRACKING_URI needs {error.name}: pip install 'diffctl[server]'") from None
    except (ArgumentError, ValueError):
        form = "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        raise UsageError(f"MLFLOW_TRACKING_URI is not the address of a database: give {form}") from None
    except DBAPIError as error:
        message = str(error.orig).strip().splitlines()[0]
        if DENIED_TEXT.search(message):
            text = f"MLflow's database at {redact_uri(uri)} denies access ({message}): edit the address"
            raise MlflowDenied(text) from None
        raise unavailable(uri, message) from None


def translate_error(uri: str, error: Exception) -> MlflowError:
    """Return the error of one sentence for an error of MlflowClient."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    status: int | None = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    message, is_sqlite = first_line(error).replace(uri, redact_uri(uri)), uri.startswith("sqlite:")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.RequestException):
            status = getattr(cause.response, "status_code", None)
            if status is None:
                return unavailable(uri, "no valid answer")
        elif isinstance(cause, sqlalchemy.exc.OperationalError) and (not is_sqlite or "locked" in message):
            return MlflowUnavailable(f"MLflow at {redact_uri(uri)}: {message}")
        cause = cause.__cause__ or cause.__context__
    if status in DENIED:
        login = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return MlflowDenied(f"MLflow at {redact_uri(uri)} denies access: set {login}")
    if status in UNAVAILABLE and not _is_full(error):
        return unavailable(uri, f"HTTP {status}")
    return MlflowError(f"MLflow at {redact_uri(uri)}: {message}{': make room' if _is_full(error) else ''}")


def _is_full(error: Exception) -> bool:
    """Return whether a disk was full; MLflow and its database report that only in their text."""
    texts = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")
    return is_disk_full(error) or any(text in str(error) for text in texts)
