"""Whether MLflow answers at all, and how it fails: away, refusing us, or by itself."""

import http.client
import ssl
import urllib.error
import urllib.request
from http import HTTPStatus
from urllib.parse import urlsplit

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError

KNOCK_SECONDS = 5.0  # for an address; a name may have two, of which the first is tried in vain

AWAY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
REFUSING = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


class MlflowError(DiffctlError):
    """MLflow fails at what it is asked for; a later try may succeed."""


class MlflowAway(MlflowError, TemporaryError):
    """MLflow does not answer."""


class MlflowRefused(MlflowError, UsageError):
    """MLflow wants to know who asks, or does not let him."""


def public(uri: str) -> str:
    """The URI without a user's name and password: what may be shown and written down."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return uri.replace(parts.netloc, host, 1) if host != parts.netloc else uri


def away(uri: str, why: str) -> MlflowAway:
    """The error for a store at `uri` that does not answer."""
    return MlflowAway(f"MLflow does not answer at {public(uri)} ({why}): try again when it does")


def refused(uri: str) -> MlflowRefused:
    """The error for a server at `uri` that asks for another user or password."""
    return MlflowRefused(
        f"MLflow at {public(uri)} does not let us in: set MLFLOW_TRACKING_USERNAME and "
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


def knock(uri: str) -> None:
    """MlflowAway when nothing answers at a server's address within seconds; any answer at all will do.

    MLflow's own client would find it out in half a minute. UsageError for an address that is none. What is
    no server's address is not asked.
    """
    if uri in _answered or not uri.startswith(("http://", "https://")):
        return
    check_address(uri)
    try:
        with urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=KNOCK_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in AWAY:
            raise away(uri, f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if not isinstance(cause, ssl.SSLError):  # MLflow's client may have been told what to trust
            raise away(uri, _in_short(cause)) from None
    _answered.add(uri)


def _in_short(cause: object) -> str:
    if isinstance(cause, TimeoutError):
        return f"not within {KNOCK_SECONDS:g} s"
    return (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(cause).__name__
