"""What every request passes: counted, known by its token, of bounded size, and answered by name.

Plain ASGI: what a framework wraps around a request would hide from the routes that its client has gone.
"""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from diffusion.system.section import canonical_json
from serving.responses import ModelRef
from serving.serve_config import MAX_BODY
from serving.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = {"/healthz", "/readyz"}  # for whoever looks whether the server lives
COUNTED = {"/v1/images", "/v1/images/events", "/v1/models", "/openapi.json", "/metrics", *OPEN}
BODY_SECONDS = 10.0  # for a client to send what it asks for


class MetricsMiddleware:
    """Counts answers, and says of each which model is at work, unless the route has said it.

    What nobody else answers is answered here.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self._named(message)]
            await send(message)

        metrics = self._service.metrics
        path = scope["path"] if scope["path"] in COUNTED else "other"
        self._service.active += 1
        try:
            await self._app(scope, receive, told)
        except Exception:  # uvicorn tells of it in the log, the client hears nothing of it
            if not status:
                await send_error(told, 500, "the server failed: see its log")
            raise
        finally:
            self._service.active -= 1
            metrics.requests.labels(path, status or "none").inc()
            metrics.seconds.labels(path).observe(time.monotonic() - began)

    def _named(self, message: Message) -> list[tuple[bytes, bytes]]:
        given = {name for name, _ in message.get("headers", [])}
        headers = model_headers(self._service.name)
        return [(name, value) for name, value in headers if name not in given]


def model_headers(name: ModelRef) -> list[tuple[bytes, bytes]]:
    """A model as headers, other letters than ASCII's as percent escapes."""
    version = "none" if name.version is None else str(name.version)
    return [
        (b"x-model-name", quote(name.name, safe=" ").encode()),
        (b"x-model-version", version.encode()),
        (b"x-model-sha256", name.sha256.encode()),
    ]


class TokenMiddleware:
    """Refuses whoever does not know the token, but for those who look whether the server lives."""

    def __init__(self, app: App, token: bytes) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._is_known(scope):
            return await self._app(scope, receive, send)
        headers = [(b"www-authenticate", b"Bearer")]
        await send_error(
            send, 401, "this server asks for its token: send Authorization: Bearer TOKEN", headers
        )

    def _is_known(self, scope: MutableMapping[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and kind.lower() == b"bearer"


class LocalHostMiddleware:
    """Refuses who calls this machine by another name: a page elsewhere whose own name leads here."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or is_loopback(_host(scope)):
            return await self._app(scope, receive, send)
        await send_error(send, 421, "without a token this server answers to localhost and 127.0.0.1 alone")


def _host(scope: MutableMapping[str, Any]) -> str:
    """The host that a request is addressed to, without its port."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return str(urlsplit(f"//{given.decode('latin-1')}").hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which nobody else reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BodyLimitMiddleware:
    """Reads a request's body before anything looks at it: not too much of it, and not for ever."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(receive)
        except TimeoutError:
            return await send_error(send, 408, f"the request did not come within {BODY_SECONDS:g} seconds")
        except ValueError:
            return await send_error(send, 413, f"a request has {MAX_BODY:,} bytes at most")
        if body is None:
            return None  # its client has gone
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replayed, send)
        return None


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client has gone, ValueError for more than it may have."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise ValueError
        if not message.get("more_body", False):
            return bytes(body)


async def send_error(
    send: Send, status: int, why: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Answer with a sentence; the connection ends, for the rest of the request may still be on its way."""
    body = canonical_json({"detail": why}).encode()
    usual = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
