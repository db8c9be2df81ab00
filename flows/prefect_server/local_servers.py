"""The servers of this project on this machine, started by `diffctl up`: MLflow and Prefect.

Prefect's leases are in files, so that neither its restart nor a reboot holds a concurrency slot forever.
Nothing here imports Prefect or MLflow.
"""

import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.signals import check_signals
from flows.prefect_server.background import FOLDER, BackgroundProcess, log_of, recorded, running, start
from flows.prefect_server.client import BUSY, HOME, LEASES, home_settings
from tracking.connectivity import redact_uri
from tracking.store import connect, server_command, server_environment, tracking_uri

START_SECONDS = 180  # a first start creates the database
POLL_SECONDS = 0.1
UP_OR_DOWN = "another `diffctl up` or `diffctl down` is running in this folder: wait for it to end"


@dataclass(frozen=True)
class ServerKind:
    """MLflow or Prefect: its names, the variable for a server elsewhere, and its URL paths."""

    name: str
    title: str
    variable: str
    api: str
    health: str
    version: str


MLFLOW = ServerKind("mlflow", "MLflow", "MLFLOW_TRACKING_URI", "", "/health", "/version")
PREFECT = ServerKind("prefect", "Prefect", "PREFECT_API_URL", "/api", "/api/health", "/api/admin/version")
KINDS = (MLFLOW, PREFECT)


@dataclass(frozen=True)
class LocalServer:
    """A server that was started in this folder: its kind and its record."""

    kind: ServerKind
    record: BackgroundProcess

    @property
    def page(self) -> str:
        """The address of its web page."""
        return f"http://127.0.0.1:{self.record.port}"

    @property
    def url(self) -> str:
        """The address for clients."""
        return self.page + self.kind.api

    @property
    def answers(self) -> bool:
        """Whether it reports that it is healthy."""
        return _get(self.page + self.kind.health) is not None

    @property
    def version(self) -> str | None:
        """The version that it reports; None if it does not answer."""
        return _get(self.page + self.kind.version)


def local_servers() -> list[LocalServer]:
    """Return the servers that were started in this folder and not stopped, alive or not."""
    found = ((kind, recorded(kind.name)) for kind in KINDS)
    return [LocalServer(kind, record) for kind, record in found if record is not None]


def mlflow_page(uri: str) -> str | None:
    """Return the web page of the MLflow store: the server at `uri`, else the one of `diffctl up`.

    Return None if the latter does not answer.
    """
    if uri.startswith(("http://", "https://")):
        return redact_uri(uri).rstrip("/")
    pages = (one.page for one in local_servers() if one.kind is MLFLOW and one.answers)
    return next(pages, None)


def is_mlflow_healthy(port: int) -> bool:
    """Return whether an MLflow server on this machine is healthy at that port."""
    return _get(f"http://127.0.0.1:{port}{MLFLOW.health}") is not None


def local_prefect() -> str | None:
    """Return the URL of the Prefect server of `diffctl up`; None if it is not alive."""
    record = running(PREFECT.name)
    return None if record is None else LocalServer(PREFECT, record).url


def prefect_url() -> str | None:
    """Return PREFECT_API_URL, else the URL of the Prefect server of `diffctl up`, else None."""
    return os.environ.get(PREFECT.variable) or local_prefect()


def require_prefect_url() -> str:
    """Return `prefect_url()`; raise UsageError if there is none."""
    url = prefect_url()
    if url is None:
        raise UsageError("there is no Prefect server: `diffctl up` starts one, or set PREFECT_API_URL")
    return url


def external_server(kind: ServerKind) -> str | None:
    """Return the server that the environment names instead of a local one, if any."""
    named = os.environ.get(kind.variable, "").strip()
    return named if named.startswith(("http://", "https://")) else None


def up(ports: Mapping[str, int], report: Callable[[str], object]) -> list[LocalServer]:
    """Start the servers that are not running, on 127.0.0.1, and wait until they answer; return all of them.

    Raise DiffctlError if a port is taken, a run has a temporary server here, or a server does not start; the
    servers started by then are stopped.
    """
    with file_lock(FOLDER / "lock", timeout=0, busy=UP_OR_DOWN), ExitStack() as undo:
        kinds = [kind for kind in KINDS if external_server(kind) is None]
        _check_ports({kind: ports[kind.name] for kind in kinds if running(kind.name) is None})
        servers = [_start(kind, ports[kind.name], undo, report) for kind in kinds]
        for server in servers:
            _wait_until_healthy(server)
        undo.pop_all()
    return servers


def down() -> list[LocalServer]:
    """Stop the servers that `up` started in this folder and return them."""
    with file_lock(FOLDER / "lock", timeout=0, busy=UP_OR_DOWN):
        found = local_servers()
        for server in reversed(found):
            server.record.stop()
    return found


def _check_ports(ports: Mapping[ServerKind, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise DiffctlError("MLflow and Prefect need a port each: give --mlflow-port or --prefect-port")
    for kind, port in ports.items():
        if not is_port_free(port):
            raise DiffctlError(
                f"port {port} of this machine is taken: give {kind.title} another one with "
                f"--{kind.name}-port, or set {port_variable(kind)}"
            )


def port_variable(kind: ServerKind) -> str:
    """Return the name of the environment variable with a server's port."""
    return f"DIFFCTL_{kind.name.upper()}_PORT"


def is_port_free(port: int) -> bool:
    """Return whether a server could listen at this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _start(kind: ServerKind, port: int, undo: ExitStack, report: Callable[[str], object]) -> LocalServer:
    if (found := running(kind.name)) is not None:
        return LocalServer(kind, found)
    if (old := recorded(kind.name)) is not None:
        old.stop()  # children that outlived it
    report(f"starting {kind.title} on 127.0.0.1:{port}")
    record = _start_mlflow(port) if kind is MLFLOW else _start_prefect(port)
    undo.callback(record.stop)
    return LocalServer(kind, record)


def _start_mlflow(port: int) -> BackgroundProcess:
    uri = tracking_uri()
    connect(uri)  # creates the store if it is missing
    return start(MLFLOW.name, server_command(port), server_environment(uri), port)


def _start_prefect(port: int) -> BackgroundProcess:
    with file_lock(HOME / "lock", timeout=0, busy=BUSY):
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        settings = home_settings(HOME.absolute()) | {
            "PREFECT_API_URL": "",
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }
        return start(PREFECT.name, [*command, "--port", str(port)], settings, port)


def _wait_until_healthy(server: LocalServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.answers:
        check_signals()
        if not server.record.alive:
            raise DiffctlError(_start_failure(server, "did not start"))
        if time.monotonic() > deadline:
            raise DiffctlError(_start_failure(server, f"did not answer within {START_SECONDS} s"))
        time.sleep(POLL_SECONDS)


def _start_failure(server: LocalServer, how: str) -> str:
    log = " / ".join(server.record.end_of_log().splitlines())
    return f"{server.kind.title} {how}, see {log_of(server.kind.name)}{': ' + log if log else ''}"


def _get(url: str) -> str | None:
    """Return the unquoted body of a local server's answer; None for an error or after 5 s."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return str(reply.read(1000).decode(errors="replace")).strip().strip('"')
    except (OSError, ValueError):
        return None
