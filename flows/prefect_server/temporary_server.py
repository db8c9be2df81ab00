"""The Prefect server of a run: PREFECT_API_URL's, else that of `diffctl up`, else a temporary one of its own.

The temporary server is Prefect's own application in a process of its own, on a free port. Its standard
input is a pipe that only the run holds: however the run ends, the pipe closes and the server with it.
Nothing here imports Prefect before its settings stand in the environment.
"""

import asyncio
import contextlib
import http.client
import importlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.signals import check_signals
from flows.prefect_server.local_servers import local_prefect
from flows.prefect_server.prefect_settings import BUSY, HOME, home_settings
from tracking.connectivity import redact_uri

ASGI = Callable[[Any, Any, Any], Awaitable[None]]

START_SECONDS = 120  # a first start creates the database: 10 s on two quiet cores
DRAIN_SECONDS = 10
RECORD_SECONDS = 15  # for the server to write down what it was told before it was to end
STOP_SECONDS = RECORD_SECONDS + 5

CLIENT = {
    "PREFECT_API_REQUEST_TIMEOUT": "10",  # a server that hangs holds nothing up for minutes
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # its telemetry complains of a locked database
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the flows say what a person should know
}


@contextmanager
def prefect_server() -> Iterator[str]:
    """Yield the API's URL, with the settings for it in the environment.

    TemporaryError when PREFECT_API_URL or the server of `diffctl up` does not answer; DiffctlError when a
    temporary server does not start, or when another run already has one in this folder.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        with _server_of_this_folder() as url:
            yield url
    elif is_healthy(url, timeout=10):
        with quiet_client(url):
            yield url
    else:
        raise TemporaryError(
            f"no Prefect server answers at PREFECT_API_URL={redact_uri(url)}: start it, or unset the "
            "variable to run on a temporary one"
        )


@contextmanager
def quiet_client(url: str) -> Iterator[None]:
    """Use the server at `url` from this process and its children, without Prefect's words on the terminal."""
    with environment({**CLIENT, "PREFECT_API_URL": url}):
        importlib.import_module("prefect")
        check_signals()  # what a signal raises may be caught in there
        try:
            yield
        finally:
            drain(url)


def is_healthy(url: str, timeout: float) -> bool:
    """Whether the API at `url` says that it is healthy within `timeout` seconds."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and asks for the key that Prefect's client has
    except (OSError, ValueError, http.client.HTTPException):  # the last: what listens is no web server
        return False


def auth_error(url: str, error: Exception) -> UsageError | None:
    """What to tell where the server at `url` failed us for want of the right password; else None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status not in (401, 403):
        return None
    return UsageError(
        f"Prefect at {redact_uri(url)} does not let us in: set PREFECT_API_AUTH_STRING to what the "
        "server has as PREFECT_SERVER_API_AUTH_STRING"
    )


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process and its children for the block; what was there comes back after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _server_of_this_folder() -> Iterator[str]:
    """The server that `diffctl up` started, else a temporary one."""
    with ExitStack() as held:
        url = local_prefect()
        if url is None:
            held.enter_context(file_lock(HOME / "lock", timeout=0, busy=BUSY))
            url = local_prefect()  # which takes the lock as it starts
        if url is None:
            yield held.enter_context(_temporary_server())
            return
        if not is_healthy(url, timeout=10):
            raise TemporaryError(
                f"the Prefect server that `diffctl up` started does not answer at {url}: "
                "`diffctl down` ends it"
            )
        held.close()
        with environment(home_settings(HOME.absolute())), quiet_client(url):
            yield url


@contextmanager
def _temporary_server() -> Iterator[str]:
    """One over this folder's database, whose lock the caller holds."""
    home = HOME.absolute()
    settings = CLIENT | home_settings(home)
    settings |= {
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # nobody can read there what the terminal shows
        "PREFECT_CLIENT_MAX_RETRIES": "2",  # on this machine it answers or is gone
    }
    with (
        environment(settings),
        _process() as (server, url),
        quiet_client(url),  # importing Prefect takes a second, in which the server starts
    ):
        _wait_until_healthy(server, url)
        yield url


@contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process and its API's URL; it is gone when the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server.temporary_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # a Ctrl-C is for the run, which still has states to report
        )
    try:
        yield server, f"http://127.0.0.1:{port}/api"
    finally:
        _stop(server)


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(url, timeout=1):
        check_signals()
        if server.poll() is not None:
            raise DiffctlError(f"the temporary Prefect server ended as it started (exit {server.returncode})")
        if time.monotonic() > deadline:
            raise DiffctlError(f"the temporary Prefect server did not answer within {START_SECONDS} s")
        time.sleep(0.05)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    assert server.stdin is not None
    server.stdin.close()


def drain(url: str) -> None:
    """Send the states and logs that Prefect still holds in this process to `url`; drop them if it is gone.

    Left to the interpreter's exit, they meet a server that is gone and hold the exit up for a minute.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    patience = DRAIN_SECONDS if is_healthy(url, timeout=1) else 0
    services: tuple[Any, ...] = (EventsWorker, APILogWorker)  # whose queues have no public name
    for service in services:
        workers = list(service._instances.values())
        service.drain_all(timeout=patience)
        for worker in workers:
            _drop(worker._queue)


def _drop(waiting: "queue.Queue[Any]") -> None:
    """Empty the queue of a stopped worker and end the worker, which waits for None."""
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
    waiting.put_nowait(None)


def _serve(descriptor: int) -> None:
    """Serve Prefect's API on the socket until a signal, or until whoever started this process is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app = record_events_before_shutdown(create_app(ephemeral=True, final=True))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])


def record_events_before_shutdown(app: ASGI) -> ASGI:
    """The application, told to end only once it has taken up the events that reached it, if that is in time.

    Tasks' states are events, which wait for Prefect's recorder in memory, and the application drops what
    waits when it ends: a run's last tasks would stay as running for ever, on a machine with much to do.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def received() -> Any:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await _taken_up()
            return message

        await app(scope, received if scope["type"] == "lifespan" else receive, send)

    return wrapped


async def _taken_up() -> None:
    """Wait until no event waits; one that is being written is written to its end by the recorder itself."""
    from prefect.server.utilities.messaging.memory import Topic

    readers = Topic.by_name("events")._subscriptions  # which have no public name
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECORD_SECONDS):
            while not all(one._queue.empty() and one._retry.empty() for one in readers):
                await asyncio.sleep(0.01)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
