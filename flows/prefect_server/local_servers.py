"""The servers of this project on this machine, started by `diffctl up`: MLflow, and Prefect with its pages.

Prefect's leases lie in files, so that neither its restart nor a reboot leaves a slot held for ever. Nothing
here imports Prefect or MLflow.
"""

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.signals import check_signals
from flows.prefect_server.background import FOLDER, BackgroundProcess, log_of, recorded, running, start
from flows.prefect_server.prefect_settings import BUSY, HOME, LEASES, home_settings
from tracking.connectivity import redact_uri
from tracking.server import server_command, server_environment
from tracking.store import connect, tracking_uri

Say = Callable[[str], object]

START_SECONDS = 180  # a first start creates the database
POLL_SECONDS = 0.1
AT_WORK = "another `diffctl up` or `diffctl down` is at work in this folder: wait for it to end"


@dataclass(frozen=True)
class ServerKind:
    """A server: what `up` and `status` call it, and the paths of its pages, its health and its version."""

    name: str
    title: str
    variable: str  # which names a server elsewhere, that is used instead
    api: str
    health: str
    version: str


MLFLOW = ServerKind("mlflow", "MLflow", "MLFLOW_TRACKING_URI", "", "/health", "/version")
PREFECT = ServerKind("prefect", "Prefect", "PREFECT_API_URL", "/api", "/api/health", "/api/admin/version")
KINDS = (MLFLOW, PREFECT)


@dataclass(frozen=True)
class LocalServer:
    """A server of this folder that is there, or was: its record, and whether it answers now."""

    kind: ServerKind
    record: BackgroundProcess

    @property
    def page(self) -> str:
        """Where a person looks at it."""
        return f"http://127.0.0.1:{self.record.port}"

    @property
    def url(self) -> str:
        """What a client is told."""
        return self.page + self.kind.api

    @property
    def answers(self) -> bool:
        """Whether it says that it is healthy."""
        return _get(self.page + self.kind.health) is not None

    @property
    def version(self) -> str | None:
        """The version that it says it is of; None where it does not answer."""
        return _get(self.page + self.kind.version)


def local_servers() -> list[LocalServer]:
    """The servers that were started in this folder and not stopped, alive or not."""
    found = ((kind, recorded(kind.name)) for kind in KINDS)
    return [LocalServer(kind, record) for kind, record in found if record is not None]


def mlflow_page(uri: str) -> str | None:
    """Where a person looks at the store's runs: the server itself, or that of `diffctl up` over it.

    None where that does not answer; of another server it is not asked.
    """
    if uri.startswith(("http://", "https://")):
        return redact_uri(uri).rstrip("/")
    pages = (one.page for one in local_servers() if one.kind is MLFLOW and one.answers)
    return next(pages, None)


def is_mlflow_healthy(port: int) -> bool:
    """Whether an MLflow on this machine says at that port that it is healthy."""
    return _get(f"http://127.0.0.1:{port}{MLFLOW.health}") is not None


def local_prefect() -> str | None:
    """The URL of the Prefect server that `diffctl up` started here; None where it is not alive."""
    record = running(PREFECT.name)
    return None if record is None else LocalServer(PREFECT, record).url


def prefect_url() -> str | None:
    """The URL of the Prefect server that PREFECT_API_URL names, else of the one that `diffctl up` started."""
    return os.environ.get(PREFECT.variable) or local_prefect()


def require_prefect_url() -> str:
    """As `prefect_url`; UsageError where there is none."""
    url = prefect_url()
    if url is None:
        raise UsageError("there is no Prefect server: `diffctl up` starts one, or set PREFECT_API_URL")
    return url


def external_server(kind: ServerKind) -> str | None:
    """The server that the environment names in the place of one of ours; None where it names none."""
    named = os.environ.get(kind.variable, "").strip()
    return named if named.startswith(("http://", "https://")) else None


def up(ports: Mapping[str, int], say: Say) -> list[LocalServer]:
    """Start the servers that are not running, each on 127.0.0.1 at its port, and wait until they answer.

    Returns all of them. DiffctlError where a port is taken, where a run has a temporary server at work here,
    and where one does not start; what was started by then is stopped.
    """
    with file_lock(FOLDER / "lock", timeout=0, busy=AT_WORK), ExitStack() as undo:
        wanted = [kind for kind in KINDS if external_server(kind) is None]
        _refuse_taken({kind: ports[kind.name] for kind in wanted if running(kind.name) is None})
        servers = [_started(kind, ports[kind.name], undo, say) for kind in wanted]
        for server in servers:
            _wait_until_it_answers(server)
        undo.pop_all()
    return servers


def down() -> list[LocalServer]:
    """Stop the servers that `up` started in this folder, those alone; returns those that were there."""
    with file_lock(FOLDER / "lock", timeout=0, busy=AT_WORK):
        found = local_servers()
        for server in reversed(found):
            server.record.stop()
    return found


def _refuse_taken(ports: Mapping[ServerKind, int]) -> None:
    """DiffctlError unless each port is free and no other server's."""
    if len(set(ports.values())) < len(ports):
        raise DiffctlError("MLflow and Prefect need a port each: give --mlflow-port or --prefect-port")
    for kind, port in ports.items():
        if not is_port_free(port):
            raise DiffctlError(
                f"port {port} of this machine is taken: give {kind.title} another one with "
                f"--{kind.name}-port, or set {port_variable(kind)}"
            )


def port_variable(kind: ServerKind) -> str:
    """The environment variable that gives a server's port."""
    return f"DIFFCTL_{kind.name.upper()}_PORT"


def is_port_free(port: int) -> bool:
    """Whether a server could listen at this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _started(kind: ServerKind, port: int, undo: ExitStack, say: Say) -> LocalServer:
    if (found := running(kind.name)) is not None:
        return LocalServer(kind, found)
    if (old := recorded(kind.name)) is not None:
        old.stop()  # what it left when it was killed
    say(f"starting {kind.title} on 127.0.0.1:{port}")
    record = STARTERS[kind](port)
    undo.callback(record.stop)
    return LocalServer(kind, record)


def _start_mlflow(port: int) -> BackgroundProcess:
    uri = tracking_uri()
    connect(uri)  # makes the store when it is not there yet
    return start(MLFLOW.name, server_command(port), server_environment(uri), port)


def _start_prefect(port: int) -> BackgroundProcess:
    with prefect_home_free():
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        settings = home_settings(HOME.absolute()) | {
            "PREFECT_API_URL": "",
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }
        return start(PREFECT.name, [*command, "--port", str(port)], settings, port)


STARTERS: Mapping[ServerKind, Callable[[int], BackgroundProcess]] = {
    MLFLOW: _start_mlflow,
    PREFECT: _start_prefect,
}


@contextmanager
def prefect_home_free() -> Iterator[None]:
    """Nobody else begins with this folder's Prefect inside the block; DiffctlError where one has."""
    with file_lock(HOME / "lock", timeout=0, busy=BUSY):
        yield


def _wait_until_it_answers(server: LocalServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.answers:
        check_signals()
        if not server.record.alive:
            raise DiffctlError(_failed(server, "ended as it started"))
        if time.monotonic() > deadline:
            raise DiffctlError(_failed(server, f"did not answer within {START_SECONDS} s"))
        time.sleep(POLL_SECONDS)


def _failed(server: LocalServer, how: str) -> str:
    said = " / ".join(server.record.end_of_log().splitlines())
    return f"{server.kind.title} {how}, see {log_of(server.kind.name)}{': ' + said if said else ''}"


def _get(url: str) -> str | None:
    """What a server of this machine answers with, unquoted; None where it answers nothing good in time."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return str(reply.read(1000).decode(errors="replace")).strip().strip('"')
    except (OSError, ValueError):
        return None
