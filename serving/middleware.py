"""ASGI middleware: metrics and model headers, the token, the Host rule, and the size of request bodies.

Plain ASGI instead of BaseHTTPMiddleware, which hides a client's disconnect from the routes.
"""

import hmac
import ipaddress
import re
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion.system.section import canonical_json
from serving.requests import MAX_BODY
from serving.responses import ModelRef
from serving.service import Service

HEALTH_PATHS = {"/healthz", "/readyz"}
METRIC_PATHS = {
    "/v1/images", "/v1/images/events", "/v1/models", "/openapi.json", "/metrics", *HEALTH_PATHS
}  # fmt: skip
HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f]*:[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::[0-9]{1,5})?", re.IGNORECASE
)


class MetricsMiddleware:
    """Counts responses, adds the headers of the model unless a route did, and answers unhandled errors."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                given = {name for name, _ in headers}
                missing = [one for one in model_headers(self._service.ref) if one[0] not in given]
                message["headers"] = headers + missing
            await send(message)

        metrics = self._service.metrics
        path = scope["path"] if scope["path"] in METRIC_PATHS else "other"
        self._service.active += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # uvicorn logs it; the client sees no details
            if not status:
                await send_error(send_with_headers, 500, "the server failed: see its log")
            raise
        finally:
            self._service.active -= 1
            metrics.requests.labels(path, status or "none").inc()
            metrics.seconds.labels(path).observe(time.monotonic() - began)


def model_headers(model: ModelRef) -> list[tuple[bytes, bytes]]:
    """Return a model's name, version and SHA-256 as headers; characters beyond ASCII are percent-encoded."""
    version = "none" if model.version is None else str(model.version)
    return [
        (b"x-model-name", quote(model.name, safe=" ").encode()),
        (b"x-model-version", version.encode()),
        (b"x-model-sha256", model.sha256.encode()),
    ]


class AccessMiddleware:
    """Requires the token except for health checks, without one a local Host, which prevents DNS rebinding."""

    def __init__(self, app: ASGIApp, token: bytes | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._token is None and not is_loopback(_host(scope)):
            await send_error(send, 421, "without a token this server answers only to localhost and 127.0.0.1")
        elif self._token is None or scope["path"] in HEALTH_PATHS or _has_token(scope, self._token):
            await self._app(scope, receive, send)
        else:
            headers = [(b"www-authenticate", b"Bearer")]
            await send_error(send, 401, "wrong or missing token: send Authorization: Bearer TOKEN", headers)


def _has_token(scope: Scope, token: bytes) -> bool:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    kind, _, sent = (given[0] if len(given) == 1 else b"").partition(b" ")
    return hmac.compare_digest(sent.strip(), token) and kind.lower() == b"bearer"


def _host(scope: Scope) -> str:
    """Return the name or address in the Host header without its port; "" if it is malformed or repeated."""
    given = [value for name, value in scope["headers"] if name == b"host"]
    match = HOST.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    return (match["ipv6"] or match["name"]) if match else ""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BodyLimitMiddleware:
    """Reads the body of a request before the routes, up to MAX_BODY bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                return await send_error(send, 413, f"a request has {MAX_BODY:,} bytes at most")
            more = message.get("more_body", False)
        pending = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)
        return None


async def send_error(
    send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a Problem and close the connection, since the rest of the request may still arrive."""
    body = canonical_json({"detail": detail}).encode()
    usual = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
