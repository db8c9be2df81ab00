"""The Prefect server of a run: PREFECT_API_URL, else the one of `diffctl up`, else a temporary server.

The temporary server is Prefect's application in its own process on a free port. Its standard input is a pipe
from the run: however the run ends, the pipe closes and the server exits.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.locks import file_lock
from diffusion.system.processes import PYTHON_MODULE, group_processes, terminate
from diffusion.system.signals import check_signals
from flows.output_relay import echo
from flows.prefect_server.client import BUSY, CLIENT_SETTINGS, HOME, home_settings, is_healthy, quiet_client
from flows.prefect_server.local_servers import prefect_url
from flows.run_lock import environment
from tracking.connectivity import redact_uri

START_SECONDS = 120  # a first start creates the database: 10 s on two idle cores
RECORD_SECONDS = 15  # for the server to record the events that it received
STOP_SECONDS = RECORD_SECONDS + 5


@contextmanager
def prefect_server() -> Iterator[str]:
    """Yield the URL of the API, with the settings for it in the environment.

    Raise TemporaryError if PREFECT_API_URL or the server of `diffctl up` does not answer, DiffctlError if a
    temporary server does not start or another run has one in this folder.
    """
    named = os.environ.get("PREFECT_API_URL")
    url = prefect_url()
    if url is None:
        with file_lock(HOME / "lock", timeout=0, busy=BUSY), _temporary_server() as url:
            yield url
        return
    if not is_healthy(url, timeout=10):
        where = f"PREFECT_API_URL={redact_uri(url)}" if named else f"{url}, which `diffctl up` started"
        raise TemporaryError(f"no Prefect server answers at {where}: start it again, or remove it")
    with environment({} if named else home_settings(HOME.absolute())), quiet_client(url):
        yield url


@contextmanager
def _temporary_server() -> Iterator[str]:
    """Run a server over this folder's database on a free port; the caller holds its lock."""
    settings = CLIENT_SETTINGS | home_settings(HOME.absolute())
    settings |= {
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # the terminal shows the log
        "PREFECT_CLIENT_MAX_RETRIES": "2",  # a local server answers or is gone
    }
    if sys.stdout.isatty():
        echo("==> starting a Prefect server for this run; `diffctl up` starts one that stays\n")
    with environment(settings):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            server = subprocess.Popen(
                [*PYTHON_MODULE, "flows.prefect_server.temporary_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the run, which still reports states
            )
        try:
            with quiet_client(url):  # imports Prefect while the server starts
                deadline = time.monotonic() + START_SECONDS
                while not is_healthy(url, timeout=1):
                    check_signals()
                    if server.poll() is not None or time.monotonic() > deadline:
                        how = "it ended" if server.poll() is not None else f"in {START_SECONDS} s"
                        problem = f"the temporary Prefect server did not start ({how})"
                        raise DiffctlError(f"{problem}: try again, or start one with `diffctl up`")
                    time.sleep(0.05)
                yield url
        finally:
            terminate(group_processes(server.pid), STOP_SECONDS)
            server.communicate()


def _serve(descriptor: int) -> None:
    """Serve Prefect's API on the socket until a signal or the end of the parent process."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await wait_for_recorder()
            await super().shutdown(sockets)

    app = create_app(ephemeral=True, final=True)
    server = Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])


async def wait_for_recorder() -> None:
    """Wait until no event is queued; the recorder itself finishes the one that it is writing.

    Task states wait in memory as events. Prefect drops them at shutdown: the last tasks would stay Running.
    """
    from prefect.server.utilities.messaging.memory import Topic

    readers = Topic.by_name("events")._subscriptions  # no public name
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECORD_SECONDS):
            while not all(one._queue.empty() and one._retry.empty() for one in readers):
                await asyncio.sleep(0.01)


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
