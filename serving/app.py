"""The application: routes for images, models, health and metrics, and its middleware."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from diffusion.system.section import explain
from serving.edit_routes import Responses, edit_routes
from serving.handlers import EventStreamResponse, Work, http_errors, respond
from serving.middleware import AccessMiddleware, BodyLimitMiddleware, MetricsMiddleware
from serving.schemas import EDIT_PATHS, EventsRequest, ImagesRequest, ImagesResponse, ModelCard, Problem
from serving.service import Service

DESCRIPTION = """Images of a diffusion model. Image i depends on the model, the settings and i alone.

Every response names its model in the headers X-Model-Name, X-Model-Version and X-Model-SHA256."""

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
EVENT = {  # data is the JSON of a StepEvent, an ImagesResponse or EditsResponse, or a Problem
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["step", "images", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
ERRORS: Responses = {
    400: {"model": Problem, "description": "The body is not JSON."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    413: {"model": Problem, "description": "The request is too large."},
    421: {"model": Problem, "description": "The Host header does not name this machine."},
    422: {"model": Problem, "description": "The request is invalid."},
    429: {"model": Problem, "description": "The queue is full: try again after Retry-After."},
    503: {"model": Problem, "description": "The server is about to stop."},
}


def create_app(service: Service, token: bytes | None = None, *further: APIRouter) -> FastAPI:
    """Return the application with further routes; without a token it serves loopback hosts only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="diffctl",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # loads scripts from other servers
        redoc_url=None,
        responses={key: ERRORS[key] for key in (401, 413, 421)},
    )
    _add_routes(app, service)
    for router in further:
        app.include_router(router)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(AccessMiddleware, token=token)
    app.add_middleware(MetricsMiddleware, service=service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    errors: Responses = {key: ERRORS[key] for key in (400, 422, 429, 503)}
    formats: Responses = {200: {"content": {"image/png": BINARY, "application/x-npz": BINARY}}}
    events: Responses = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}

    @app.post("/v1/images", response_model=ImagesResponse, responses={**errors, **formats})
    async def images(body: ImagesRequest, request: Request) -> Response:
        """Sample images and return all of them. A disconnect cancels them."""
        with http_errors(service) as model:
            work = Work(service, model, model.submit(body))
        return await respond(work, body.format, request)

    @app.post("/v1/images/events", response_class=Response, responses={**errors, **events})
    async def image_events(body: EventsRequest) -> Response:
        """Sample images and send server-sent events: `step`, then `images` or `error`.

        The data of `step` is {step, steps, indices, images}; of `images` the response of /v1/images; of
        `error` {detail}.
        """
        with http_errors(service) as model:
            return EventStreamResponse(Work(service, model, model.submit(body, body.every)))

    app.include_router(edit_routes(service, {**errors, **formats}, {**errors, **events}))

    @app.get("/v1/models")
    async def models() -> dict[str, list[ModelCard]]:
        """The model that serves, and any that finishes its requests."""
        return {"models": service.cards()}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Liveness."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def readyz() -> dict[str, str]:
        """Readiness: whether a request for images would be accepted."""
        if not service.is_ready:
            raise HTTPException(503, "the server is about to stop, or its engine has failed")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _validation_error(request: Request, error: Exception) -> Response:
    """Return the errors of a request as one sentence; invalid values are shortened."""
    assert isinstance(error, RequestValidationError)
    items = error.errors()
    if isinstance(error.body, bytes):  # not parsed
        sentence = "the body is not declared as JSON: send the header Content-Type: application/json"
        sentence += ", or a picture's" if request.url.path in EDIT_PATHS else ""
    elif items[0]["type"] == "json_invalid":
        sentence = f"the request is not JSON ({items[0]['ctx']['error']} at {items[0]['loc'][-1]})"
    else:
        fields: Any = [{**item, "loc": item["loc"][1:2]} for item in items]  # without "body"
        sentence = explain(fields, "the request", None)
    return JSONResponse({"detail": sentence}, 422)
