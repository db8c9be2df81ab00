"""The servers of this project on this machine, started by `diffctl up`: MLflow and Prefect.

They outlive the command, each recorded in runs/servers/ by process id and start time, so that a later process
with the same id is not mistaken for it. Nothing here imports Prefect or MLflow.
"""

import http.client
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from diffusion.system.checksums import read_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.system.locks import file_lock
from diffusion.system.processes import PYTHON_MODULE, group_processes, start_time, terminate
from diffusion.system.section import Section
from diffusion.system.signals import check_signals
from flows.output_relay import echo
from flows.prefect_server.client import BUSY, HOME, home_settings
from tracking.connectivity import check_address, redact_uri
from tracking.store import connect, server_command, server_environment, tracking_uri

FOLDER = Path("runs/servers")
LAST_LINES = 5  # of the log, shown if a server fails to start
START_SECONDS = 180  # a first start creates the database
POLL_SECONDS = 0.1
UP_OR_DOWN = "another `diffctl up` or `diffctl down` is running in this folder: wait for it to end"


@dataclass(frozen=True)
class ServerKind:
    """MLflow or Prefect: its names, the variable for a server elsewhere, and its URL paths."""

    name: str
    title: str
    variable: str
    health: str
    version: str


MLFLOW = ServerKind("mlflow", "MLflow", "MLFLOW_TRACKING_URI", "/health", "/version")
PREFECT = ServerKind("prefect", "Prefect", "PREFECT_API_URL", "/api/health", "/api/admin/version")
KINDS = (MLFLOW, PREFECT)


class LocalServer(Section):
    """A background process, the leader of its own session, and the port that it serves."""

    name: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    pid: Annotated[int, Field(gt=1, lt=2**31)]
    start: Annotated[str, Field(max_length=100)]
    port: Annotated[int, Field(gt=0, lt=2**16)]

    @property
    def kind(self) -> ServerKind:
        """What it serves."""
        return next(kind for kind in KINDS if kind.name == self.name)

    @property
    def page(self) -> str:
        """The address of its web page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the started process still exists."""
        return start_time(self.pid) == self.start

    @property
    def version(self) -> str | None:
        """The version that it reports; None if it does not answer."""
        return _get(self.page + self.kind.version)

    def stop(self) -> None:
        """End the process and its children, and delete the record."""
        terminate(self.processes())
        _record(self.name).unlink(missing_ok=True)

    def processes(self) -> list[psutil.Process]:
        """Return the process group, also after its leader was killed; none if another process has its id."""
        return group_processes(self.pid) if start_time(self.pid) in (self.start, None) else []


def start_server(name: str, command: Sequence[str], variables: Mapping[str, str], port: int) -> LocalServer:
    """Start the command in its own session, log to runs/servers/NAME.log, and record it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    made = LocalServer(name=name, pid=process.pid, start=start_time(process.pid) or "ended", port=port)
    write_json(_record(name), made.model_dump())
    return made


def recorded(name: str) -> LocalServer | None:
    """Return the server that was started last, alive or not; raise DiffctlError if its record is damaged."""
    with suppress(FileNotFoundError):
        return read_json(_record(name), LocalServer)
    return None


def running(name: str) -> LocalServer | None:
    """Return the server started under this name if it is alive."""
    found = recorded(name)
    return found if found is not None and found.alive else None


def _record(name: str) -> Path:
    return FOLDER / f"{name}.json"


def local_servers() -> list[LocalServer]:
    """Return the servers that were started in this folder and not stopped, alive or not."""
    return [server for kind in KINDS if (server := recorded(kind.name)) is not None]


def mlflow_page(uri: str) -> str | None:
    """Return the web page of the MLflow store: of the server at `uri`, or of `diffctl up` if it answers."""
    if uri.startswith(("http://", "https://")):
        return redact_uri(uri).rstrip("/")
    server = recorded(MLFLOW.name)
    return server.page if server is not None and is_mlflow_healthy(server.page) else None


def is_mlflow_healthy(page: str) -> bool:
    """Return whether an MLflow server on this machine is healthy at that address."""
    return _get(page + MLFLOW.health) is not None


def prefect_url() -> str | None:
    """Return PREFECT_API_URL, else the URL of the live Prefect server of `diffctl up`, else None.

    UsageError if PREFECT_API_URL is no address.
    """
    if named := os.environ.get(PREFECT.variable):
        check_address(named, PREFECT.variable, "http://HOST:PORT/api")
        return named
    server = running(PREFECT.name)
    return None if server is None else f"{server.page}/api"


def require_prefect_url() -> str:
    """Return `prefect_url()`; raise UsageError if there is none."""
    if url := prefect_url():
        return url
    raise UsageError("there is no Prefect server: `diffctl up` starts one, or set PREFECT_API_URL")


def external_server(kind: ServerKind) -> str | None:
    """Return the server that the environment names instead of a local one, if any."""
    named = os.environ.get(kind.variable, "").strip()
    return named if named.startswith(("http://", "https://")) else None


def up(ports: Mapping[str, int]) -> list[LocalServer]:
    """Start the servers that are not running, on 127.0.0.1, and wait until they answer; return all of them.

    Raise DiffctlError if a port is taken, a run has a temporary server here, or a server does not start; the
    servers started by then are stopped.
    """
    with file_lock(FOLDER / "lock", timeout=0, busy=UP_OR_DOWN), ExitStack() as undo:
        kinds = [kind for kind in KINDS if external_server(kind) is None]
        _check_ports({kind: ports[kind.name] for kind in kinds if running(kind.name) is None})
        servers = [_start(kind, ports[kind.name], undo) for kind in kinds]
        for server in servers:
            _wait_until_healthy(server)
        undo.pop_all()
    return servers


def down() -> list[LocalServer]:
    """Stop the servers that `up` started in this folder and return them."""
    with file_lock(FOLDER / "lock", timeout=0, busy=UP_OR_DOWN):
        found = local_servers()
        for server in reversed(found):
            server.stop()
    return found


def is_port_free(port: int) -> bool:
    """Return whether a server could listen at this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _check_ports(ports: Mapping[ServerKind, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise DiffctlError("MLflow and Prefect need a port each: give --mlflow-port or --prefect-port")
    for kind, port in ports.items():
        if not is_port_free(port):
            option, variable = f"--{kind.name}-port", f"DIFFCTL_{kind.name.upper()}_PORT"
            raise DiffctlError(f"port {port} is in use: give {kind.title} another by {option} or {variable}")


def _start(kind: ServerKind, port: int, undo: ExitStack) -> LocalServer:
    if (old := recorded(kind.name)) is not None:
        if old.alive:
            return old
        old.stop()  # children that outlived it
    echo(f"starting {kind.title} on 127.0.0.1:{port}\n")
    if kind is PREFECT:
        command = [*PYTHON_MODULE, "prefect", "server", "start", "--host", "127.0.0.1"]
        settings = home_settings(HOME.absolute()) | {
            "PREFECT_API_URL": "",
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
            # In files, so that neither a restart nor a reboot holds a slot forever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }
        with file_lock(HOME / "lock", timeout=0, busy=BUSY):
            server = start_server(kind.name, [*command, "--port", str(port)], settings, port)
    else:
        uri = tracking_uri()
        connect(uri)  # creates the store if it is missing
        server = start_server(kind.name, server_command(port), server_environment(uri), port)
    undo.callback(server.stop)
    return server


def _wait_until_healthy(server: LocalServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _get(server.page + server.kind.health) is None:
        check_signals()
        if not server.alive or time.monotonic() > deadline:
            log = FOLDER / f"{server.name}.log"
            lines = " / ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise DiffctlError(f"{server.kind.title} did not start, see {log}: {lines}")
        time.sleep(POLL_SECONDS)


def _get(url: str) -> str | None:
    """Return the unquoted body of a local server's answer; None for an error or after 5 s."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return str(reply.read(1000).decode(errors="replace")).strip().strip('"')
    except (OSError, ValueError, http.client.HTTPException):  # HTTPException: not a web server
        return None
