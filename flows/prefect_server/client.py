"""The client of a Prefect server: settings, health, quiet access, and flows that survive the server.

Prefect is imported only after its settings are in the environment.
"""

import asyncio
import contextlib
import http.client
import importlib
import queue
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.system.signals import check_signals, make_interrupted
from flows.output_relay import echo
from flows.run_lock import environment
from tracking.connectivity import redact_uri
from tracking.store import sqlite_uri

if TYPE_CHECKING:
    from prefect import State
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

HOME = Path(".prefect")
BUSY = "another `diffctl run` is running in this folder: wait for it, or stop it with Ctrl-C there"

CLIENT_SETTINGS = {
    "PREFECT_API_REQUEST_TIMEOUT": "10",  # a server that hangs delays nothing for minutes
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # telemetry logs errors about a locked database
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the flows print what the user needs
}
DRAIN_SECONDS = 10


def home_settings(home: Path) -> dict[str, str]:
    """Return the settings of a server, or of its client, that keeps all files in the absolute path `home`."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_API_DATABASE_CONNECTION_URL": sqlite_uri(home / "prefect.db", "sqlite+aiosqlite"),
    }


def is_healthy(url: str, timeout: float) -> bool:
    """Return whether the API at `url` reports that it is healthy within `timeout` seconds."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it runs and requires the key that Prefect's client sends
    except (OSError, ValueError, http.client.HTTPException):  # HTTPException: not a web server
        return False


@contextmanager
def quiet_client(url: str) -> Iterator[None]:
    """Use the server at `url` in this process and its children, without Prefect's console logs."""
    with environment({**CLIENT_SETTINGS, "PREFECT_API_URL": url}):
        importlib.import_module("prefect")
        check_signals()  # the import may swallow the exception of a signal
        try:
            yield
        finally:
            drain(url)


@contextmanager
def api_client(url: str) -> Iterator["SyncPrefectClient"]:
    """Yield a client of the API at `url`.

    Raise UsageError for a wrong password, TemporaryError if it does not answer, DiffctlError if it refuses.
    """
    import httpx

    with quiet_client(url):
        from prefect.client.orchestration import get_client
        from prefect.exceptions import PrefectException

        try:
            with get_client(sync_client=True) as client:
                yield client
        # RuntimeError: the server has another major version.
        except (httpx.HTTPError, PrefectException, RuntimeError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            where, why = f"Prefect at {redact_uri(url)}", " ".join(str(error).split()) or type(error).__name__
            if status in (401, 403):
                raise UsageError(f"{where} denies access: set PREFECT_API_AUTH_STRING") from None
            if isinstance(error, httpx.TransportError) or (status or 0) >= 500:
                raise TemporaryError(f"{where} does not answer ({why})") from None
            raise DiffctlError(f"{where} refuses: {why}. Use the same version of Prefect here") from None


def all_deployments(client: "SyncPrefectClient") -> "Iterator[DeploymentResponse]":
    """Yield the deployments of all pages, by date: an order by name, which may repeat, can skip some."""
    from prefect.client.schemas.sorting import DeploymentSort

    offset = 0
    while page := client.read_deployments(sort=DeploymentSort.CREATED_DESC, offset=offset):
        yield from page
        offset += len(page)


def run_flow(start: "Callable[[], Awaitable[State]]", url: str) -> None:
    """Run the flow to the final state that `start` returns; raise the exception that ended it.

    Raise Interrupted on a signal. If the server at `url` fails, print that: the caller continues without it.
    """
    import httpx
    from prefect.exceptions import PrefectException, TerminationSignal

    async def run() -> None:
        try:
            state = await start()
        except RuntimeError as error:  # the server has another major version
            raise PrefectException(str(error)) from error
        await state.aresult()

    try:
        asyncio.run(run())
    except TerminationSignal as end:  # Prefect's exception for SIGTERM
        raise make_interrupted(end.signal) from None
    except (PrefectException, httpx.HTTPError) as error:
        why = str(error) or type(error).__name__
        failed = f"the Prefect server at {redact_uri(url)} failed ({why})"
        echo(f"{failed}: continuing without it\n", err=True)


def drain(url: str) -> None:
    """Send what Prefect buffers, or drop it if `url` is gone: the exit would block for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    timeout = DRAIN_SECONDS if is_healthy(url, timeout=1) else 0
    services: tuple[Any, ...] = (EventsWorker, APILogWorker)  # their queues have no public name
    for service in services:
        workers = list(service._instances.values())
        service.drain_all(timeout=timeout)
        for worker in workers:
            with contextlib.suppress(queue.Empty):
                while True:
                    worker._queue.get_nowait()
            worker._queue.put_nowait(None)  # the sentinel that ends it
