"""The application under uvicorn in this process, until Ctrl-C or SIGTERM."""

import asyncio
import contextlib
import errno
import ipaddress
import re
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import read_regular_text
from diffusion.system.signals import StopRequest, stop_request
from serving.service import Service

MAX_CONNECTIONS = 1000  # beyond them a request gets 503
FLUSH_SECONDS = 5  # for responses to reach their clients after the last image
MIN_TOKEN, MAX_TOKEN = 16, 4096  # characters


def read_token(path: Path) -> bytes:
    """Return the token in a file; raise UsageError if it is too short, too long or not printable ASCII."""
    if not path.exists():
        raise UsageError(f"no token file at {printable(path)}")
    token = read_regular_text(path, 2 * MAX_TOKEN).strip()
    if not re.fullmatch(f"[!-~]{{{MIN_TOKEN},{MAX_TOKEN}}}", token):
        raise UsageError(f"{printable(path)} has no valid token: write the output of `openssl rand -hex 32`")
    return token.encode()


def bind_socket(host: str, port: int, has_token: bool) -> socket.socket:
    """Return a bound socket; raise UsageError if public without a token, DiffctlError if it is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"unknown address {printable(host)!r}: give one of this machine") from None
    family, kind, protocol, _, address = found[0]
    require_token(host, str(address[0]), has_token)
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        text = f"{printable(host)} port {port} is not available ({error.strerror}): give another with --port"
        raise DiffctlError(text) from None
    return bound


def require_token(host: str, address: str, has_token: bool) -> None:
    """Raise UsageError if other machines can reach the address and there is no token."""
    is_local = address == "localhost"
    with contextlib.suppress(ValueError):  # another name
        is_local |= ipaddress.ip_address(address).is_loopback
    if not has_token and not is_local:
        raise UsageError(f"{printable(host)} is open to others: give a --token-file, or serve at 127.0.0.1")


def serve(app: FastAPI, service: Service, bound: socket.socket, on_start: Callable[[], object]) -> None:
    """Serve at the socket until SIGINT or SIGTERM; call `on_start` once it listens.

    Requests that began by then are answered within the time that the service allows; later ones get 503.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor per connection
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",  # Ray Serve installs uvloop
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
        _Server(config, service, stop, on_start).run([bound])
        stop.clear()


class _Server(uvicorn.Server):
    """A uvicorn server that drains the service before it stops; the caller handles signals."""

    def __init__(
        self, config: uvicorn.Config, service: Service, stop: StopRequest, on_start: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._service, self._stop, self._on_start = service, stop, on_start
        self._draining: asyncio.Task[None] | None = None
        self._lacks_descriptors = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        asyncio.get_running_loop().set_exception_handler(self._handle_error)
        await super().startup(sockets)
        self._on_start()

    def _handle_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of the event loop. Without a free file descriptor it raises thousands a second."""
        if getattr(context.get("exception"), "errno", None) not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif not self._lacks_descriptors:  # reported once
            self._lacks_descriptors = True
            self._service.report("no file descriptor is free, so new clients wait: raise `ulimit -n`")

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop now."""
        if self._stop.signal is not None and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield

    async def _drain(self) -> None:
        await self._service.drain()
        await self._service.stop()  # pending requests are answered before the connections close
        self.should_exit = True
