"""The application under uvicorn, in this process, until Ctrl-C or SIGTERM."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.regular_files import read_error, read_regular
from diffusion.system.signals import StopRequest, stop_request
from serving.middleware import is_loopback
from serving.patience import PatientProtocol
from serving.service import Service

MAX_CONNECTIONS = 1000  # beyond, a request is answered by 503
FLUSH_SECONDS = 5  # seconds for answers to reach their clients, once all are made
MIN_TOKEN, MAX_TOKEN = 16, 4096  # characters of a token


def read_token(path: Path) -> bytes:
    """The token in a file; UsageError where it cannot be sent, or is too short to keep others out."""
    try:
        token = read_regular(path, 2 * MAX_TOKEN).strip()
    except FileNotFoundError:
        raise UsageError(f"no token file at {printable(path)}") from None
    except OSError as error:
        raise read_error(path, error) from None
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not all(33 <= byte <= 126 for byte in token):
        raise UsageError(
            f"{printable(path)} holds no token: write {MIN_TOKEN} to {MAX_TOKEN:,} letters and digits, "
            "such as `openssl rand -hex 32` gives"
        )
    return token


def bind_socket(host: str, port: int, has_token: bool) -> socket.socket:
    """A socket bound to that address, at which nobody is heard yet.

    UsageError where others would reach it and no token is asked; DiffctlError where it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"there is no address {printable(host)!r}: give this machine's own") from None
    family, kind, protocol, _, address = found[0]
    require_token(host, str(address[0]), has_token)
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise DiffctlError(
            f"{printable(host)} port {port} cannot be had ({error.strerror}): give another one with --port"
        ) from None
    return made


def require_token(host: str, address: str, has_token: bool) -> None:
    """UsageError where others than this machine would reach the host's address and no token is asked."""
    if not has_token and not is_loopback(address):
        raise UsageError(
            f"{printable(host)} is open to other machines: give a --token-file that they must know, "
            "or serve at 127.0.0.1"
        )


def serve(app: FastAPI, service: Service, at: socket.socket, started: Callable[[], object]) -> None:
    """Answer requests at the socket until this process is told to stop, and `started` once it does.

    What was begun by then is made and answered, for as long as the service allows; what comes after gets 503.
    """
    _allow_files()
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",  # also where uvloop is installed, as Ray Serve wants it
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    with stop_request() as stop:
        _Server(config, service, stop, started).run([at])
        stop.clear()


class _Server(uvicorn.Server):
    """uvicorn, which stops once the service is drained, and hears of signals from who started it."""

    def __init__(
        self, config: uvicorn.Config, service: Service, stop: StopRequest, started: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._service, self._stop, self._tell = service, stop, started
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._tell()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now."""
        if self._stop.signal is not None and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are heard already."""
        yield

    async def _drain(self) -> None:
        await self._service.drained()
        await self._service.stop()  # who still waits is answered before the connections end
        self.should_exit = True


def _allow_files() -> None:
    """As many open connections as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
