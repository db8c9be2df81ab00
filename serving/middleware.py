"""ASGI middleware: metrics and model headers, the token, the Host rule, and the size of request bodies.

Plain ASGI instead of BaseHTTPMiddleware, which hides a client's disconnect from the routes.
"""

import hmac
import re
import time
from urllib.parse import quote

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.schemas import BODY_LIMITS, EDIT_PATHS, MAX_BODIES, MAX_BODY, RETRY_SECONDS, ModelRef
from serving.service import Service

FAILED = "the server failed: see its log"
HEALTH_PATHS = {"/healthz", "/readyz"}
METRIC_PATHS = {
    "/v1/images", "/v1/images/events", *EDIT_PATHS, "/v1/models", "/openapi.json", "/metrics", *HEALTH_PATHS
}  # fmt: skip
LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)


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
                headers = MutableHeaders(scope=message)
                for name, value in model_headers(self._service.current.ref).items():
                    headers.setdefault(name, value)
            await send(message)

        metrics = self._service.metrics
        path = scope["path"] if scope["path"] in METRIC_PATHS else "other"
        self._service.active += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # uvicorn logs it; the client sees no details
            if not status:
                await _problem(500, FAILED)(scope, receive, send_with_headers)
            raise
        finally:
            self._service.active -= 1
            metrics.requests.labels(path, status or "none").inc()
            metrics.seconds.labels(path).observe(time.monotonic() - began)


def model_headers(model: ModelRef) -> dict[str, str]:
    """Return a model's name, version and SHA-256 as headers; characters beyond ASCII are percent-encoded."""
    return {
        "X-Model-Name": quote(model.name, safe=" "),
        "X-Model-Version": "none" if model.version is None else str(model.version),
        "X-Model-SHA256": model.sha256,
    }


class AccessMiddleware:
    """Requires the token except for health checks, without one a local Host, which prevents DNS rebinding."""

    def __init__(self, app: ASGIApp, token: bytes | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._token is None:
            hosts = headers.getlist("host")
            if len(hosts) == 1 and LOOPBACK_HOST.fullmatch(hosts[0]):
                return None
            return _problem(421, "without a token this server answers only to localhost and 127.0.0.1")
        given = headers.getlist("authorization")
        kind, _, sent = (given[0] if len(given) == 1 else "").partition(" ")
        has_token = hmac.compare_digest(sent.strip().encode(), self._token) and kind.lower() == "bearer"
        if has_token or scope["path"] in HEALTH_PATHS:
            return None
        sentence = "wrong or missing token: send Authorization: Bearer TOKEN"
        return _problem(401, sentence, {"WWW-Authenticate": "Bearer"})


class BodyLimitMiddleware:
    """Reads the body of a request before the routes, up to the limit of its path and of all requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = 0  # bytes of unfinished requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            if await self._read(scope, receive, send, body):
                pending = [{"type": "http.request", "body": bytes(body), "more_body": False}]

                async def replay() -> Message:
                    return pending.pop() if pending else await receive()

                await self._app(scope, replay, send)
        finally:
            self._held -= len(body)

    async def _read(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> bool:
        """Append the request's body; return False if the client is gone, or was refused."""
        limit, more = BODY_LIMITS.get(scope["path"], MAX_BODY), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > limit:
                await _problem(413, f"a request has {limit:,} bytes at most")(scope, receive, send)
                return False
            if self._held > MAX_BODIES:
                sentence = (
                    f"the server holds {MAX_BODIES:,} bytes of requests: try again in {RETRY_SECONDS} s"
                )
                await _problem(429, sentence, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)
                return False
            more = message.get("more_body", False)
        return True


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a Problem that closes the connection, since the rest of the request may still arrive."""
    return JSONResponse({"detail": detail}, status, {"Connection": "close", **(headers or {})})
