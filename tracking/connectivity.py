"""Whether MLflow answers at all, and how it fails: away, refusing us, or by itself."""

import http.client
import ssl
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError

if TYPE_CHECKING:
    import sqlalchemy

TIMEOUT_SECONDS = 5.0  # for an address; a name may have two, of which the first is tried in vain

UNAVAILABLE = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

# What a database says of a user, a password or a name that it does not take: its drivers give no code for it.
REFUSING_WORDS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "permission denied",
    "no pg_hba.conf entry",
    "Access denied",
    "Unknown database",
)
WITH_TIMEOUT = ("postgresql", "mysql")  # whose drivers take one, for each address that a name has


class MlflowError(DiffctlError):
    """MLflow fails at what it is asked for; a later try may succeed."""


class MlflowUnavailable(MlflowError, TemporaryError):
    """MLflow does not answer."""


class MlflowDenied(MlflowError, UsageError):
    """MLflow wants to know who asks, or does not let him."""


def redact_uri(uri: str) -> str:
    """The URI without a user's name and password: what may be shown and written down.

    A database's may have its password among its options, too, which are left out.
    """
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    shown = uri.replace(parts.netloc, host, 1) if host != parts.netloc else uri
    return shown.replace(f"?{parts.query}", "", 1) if "password=" in parts.query else shown


def unavailable(uri: str, why: str) -> MlflowUnavailable:
    """The error for a store at `uri` that does not answer."""
    return MlflowUnavailable(f"MLflow does not answer at {redact_uri(uri)} ({why}): try again when it does")


def denied(uri: str) -> MlflowDenied:
    """The error for a server at `uri` that asks for another user or password."""
    return MlflowDenied(
        f"MLflow at {redact_uri(uri)} does not let us in: set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to a user with the right to do this"
    )


def check_address(uri: str) -> None:
    """UsageError when a server's address has no host, or a port that is none."""
    try:
        parts = urlsplit(uri)
        known = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise UsageError("MLFLOW_TRACKING_URI is no address of a server: give http://HOST:PORT")


_answered: set[str] = set()  # one knock a process is enough


def check_reachable(uri: str) -> None:
    """MlflowAway when nothing answers at a server's or a database's address within seconds.

    MLflow's own client would find it out in half a minute, of a database in two. A server may answer what it
    likes; a database that does not let us in is an MlflowRefused. UsageError for an address that is none, or
    of a database whose driver is not installed. A file is not asked.
    """
    if uri in _answered or uri.startswith("sqlite:"):
        return
    if uri.startswith(("http://", "https://")):
        _knock_at_server(uri)
    else:
        _knock_at_database(uri)
    _answered.add(uri)


def _knock_at_server(uri: str) -> None:
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
        if not isinstance(cause, ssl.SSLError):  # MLflow's client may have been told what to trust
            raise unavailable(uri, _in_short(cause)) from None


def _knock_at_database(uri: str) -> None:
    import sqlalchemy

    engine = _engine(uri)
    try:
        engine.connect().close()
    except sqlalchemy.exc.DBAPIError as error:
        said = str(error.orig).strip().splitlines()[0]
        if any(words in said for words in REFUSING_WORDS):
            raise MlflowDenied(
                f"MLflow's database at {redact_uri(uri)} does not let us in ({said}): give another user, "
                "password or database in MLFLOW_TRACKING_URI"
            ) from None
        raise unavailable(uri, said) from None


def _engine(uri: str) -> "sqlalchemy.Engine":
    """What connects to a database once, and waits for seconds; UsageError where there is no such thing."""
    import sqlalchemy

    options = {"connect_timeout": int(TIMEOUT_SECONDS)} if uri.startswith(WITH_TIMEOUT) else {}
    try:
        return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=options)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"MLFLOW_TRACKING_URI needs {error.name}, which is not installed: "
            "pip install 'diffctl[server]' for postgresql+psycopg://…"
        ) from None
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError(
            "MLFLOW_TRACKING_URI is no address of a database: "
            "give postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None


def _in_short(cause: object) -> str:
    if isinstance(cause, TimeoutError):
        return f"not within {TIMEOUT_SECONDS:g} s"
    return (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(cause).__name__
