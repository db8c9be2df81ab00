"""Checks whether MLflow is reachable, and the errors for the ways in which it fails."""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from http import HTTPStatus
from urllib.parse import urlsplit

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError

TIMEOUT_SECONDS = 5.0  # per IP address; a host name may have two, and the first may not answer

UNAVAILABLE = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

# Database drivers have no error code for a wrong user, password or database name, only a text.
DENIED_TEXT = re.compile(
    "authentication failed|no password supplied|does not exist|permission denied|no pg_hba.conf entry"
    "|Access denied|Unknown database"
)


class MlflowError(DiffctlError):
    """A request to MLflow failed; a later try may succeed."""


class MlflowUnavailable(MlflowError, TemporaryError):
    """MLflow does not answer."""


class MlflowDenied(MlflowError, UsageError):
    """MLflow requires a login, or the user lacks a permission."""


def redact_uri(uri: str) -> str:
    """Return the URI without user name and password, nor the options of a database that contain one."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    redacted = uri.replace(parts.netloc, host, 1) if host != parts.netloc else uri
    return redacted.replace(f"?{parts.query}", "", 1) if "password=" in parts.query else redacted


def unavailable(uri: str, why: str) -> MlflowUnavailable:
    """Return the error for a store that does not answer."""
    return MlflowUnavailable(f"MLflow does not answer at {redact_uri(uri)} ({why}): try again later")


def denied(uri: str) -> MlflowDenied:
    """Return the error for a server that requires another user or password."""
    return MlflowDenied(
        f"MLflow at {redact_uri(uri)} denies access: set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to a user with this permission"
    )


def check_address(uri: str) -> None:
    """Raise UsageError if a server's address has no host or an invalid port."""
    try:
        parts = urlsplit(uri)
        valid = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError("MLFLOW_TRACKING_URI is not the address of a server: give http://HOST:PORT")


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
    check_address(uri)
    try:
        with urllib.request.urlopen(f"{redact_uri(uri).rstrip('/')}/health", timeout=TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in UNAVAILABLE:
            raise unavailable(uri, f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise unavailable(uri, f"not within {TIMEOUT_SECONDS:g} s") from None
        if not isinstance(cause, ssl.SSLError):  # MLflow's client may have its own certificates
            text = isinstance(cause, OSError) and cause.strerror
            raise unavailable(uri, text or str(cause) or type(cause).__name__) from None


def _check_database(uri: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError

    has_timeout = uri.startswith(("postgresql", "mysql"))
    options = {"connect_timeout": int(TIMEOUT_SECONDS)} if has_timeout else {}
    try:
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=options).connect().close()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"MLFLOW_TRACKING_URI needs {error.name}, which is not installed: "
            "pip install 'diffctl[server]' for postgresql+psycopg://…"
        ) from None
    except (ArgumentError, ValueError):
        raise UsageError(
            "MLFLOW_TRACKING_URI is not the address of a database: "
            "give postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    except DBAPIError as error:
        message = str(error.orig).strip().splitlines()[0]
        if DENIED_TEXT.search(message):
            raise MlflowDenied(
                f"MLflow's database at {redact_uri(uri)} denies access ({message}): give another user, "
                "password or database in MLFLOW_TRACKING_URI"
            ) from None
        raise unavailable(uri, message) from None
