"""The routes: images on request, at once or as they come; the models; how the server is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from diffusion.system.section import MAX_PROBLEMS, brief
from serving.engine_loop import PendingImages
from serving.handlers import EventStreamResponse, http_errors, respond, sse_events, with_model_headers
from serving.loaded_model import ServedModel
from serving.middleware import BodyLimitMiddleware, LocalHostMiddleware, MetricsMiddleware, TokenMiddleware
from serving.requests import EventsRequest, ImagesRequest, SampleRequest
from serving.responses import Health, ImagesResponse, ModelsResponse, Problem
from serving.service import Service

DESCRIPTION = """Images of a diffusion model. Image i depends on the model, the settings and i alone.

Every answer says in its headers X-Model-Name, X-Model-Version and X-Model-SHA256 which model it is of."""

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
Answers = dict[int | str, dict[str, Any]]

EVENT = {  # of each event: data is JSON of an EventAnswer, an ImagesAnswer or a Problem
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["step", "images", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
REFUSALS: Answers = {
    400: {"model": Problem, "description": "This is no JSON."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    408: {"model": Problem, "description": "The request was too slow to come."},
    413: {"model": Problem, "description": "The request is too large."},
    421: {"model": Problem, "description": "The server is asked by a name that is not its own."},
    422: {"model": Problem, "description": "The request does not fit, and why."},
    429: {"model": Problem, "description": "Too many images are being made: try again after Retry-After."},
    503: {"model": Problem, "description": "The server is about to stop."},
}


def create_app(service: Service, token: bytes | None = None, *further: APIRouter) -> FastAPI:
    """The application over a service, with further routes; without a token only local names reach it."""

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
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        responses={key: REFUSALS[key] for key in (401, 408, 413, 421)},
    )
    _add_routes(app, service)
    for router in further:
        app.include_router(router)
    app.exception_handler(RequestValidationError)(_refused)
    app.add_middleware(BodyLimitMiddleware)
    if token is None:
        app.add_middleware(LocalHostMiddleware)
    else:
        app.add_middleware(TokenMiddleware, token=token)
    app.add_middleware(MetricsMiddleware, service=service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    asks: Answers = {key: REFUSALS[key] for key in (400, 422, 429, 503)}
    formats: Answers = {200: {"content": {"image/png": BINARY, "application/x-npz": BINARY}}}

    @app.post("/v1/images", response_model=ImagesResponse, responses={**asks, **formats})
    async def images(asked: ImagesRequest, request: Request) -> Response:
        """Make images and answer with all of them. They are given up when the client leaves."""
        model, order = _ordered(service, asked)
        return with_model_headers(await respond(service, model, order, asked.format, request), model)

    events: Answers = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}

    @app.post("/v1/images/events", response_class=Response, responses={**asks, **events})
    async def image_events(asked: EventsRequest) -> Response:
        """Make images and tell of them as they come: server-sent events `step`, then `images` or `error`.

        The data of `step` is {step, steps, indices, images}; of `images` the answer of /v1/images; of `error`
        {detail}.
        """
        model, order = _ordered(service, asked, asked.every)
        return with_model_headers(
            EventStreamResponse(sse_events(service, model, order), service, model, order), model
        )

    @app.get("/v1/models")
    async def models() -> ModelsResponse:
        """The model that answers, and those that end what they have begun."""
        return ModelsResponse(models=service.cards())

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the server lives."""
        return Health(status="alive")

    @app.get("/readyz", responses={503: REFUSALS[503]})
    async def readyz() -> Health:
        """Whether a request for images would be taken."""
        if not service.is_ready:
            raise HTTPException(503, "the server is about to stop, or its engine has failed")
        return Health(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What the server counts, for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _ordered(service: Service, asked: SampleRequest, every: int = 0) -> tuple[ServedModel, PendingImages]:
    """The order with the model that makes it; HTTPException when it is not taken."""
    with http_errors(service) as model:
        return model, model.order(asked, every)


async def _refused(request: Request, error: Exception) -> Response:
    """The first of what is wrong with a request, in sentences; what was given is told back in brief."""
    assert isinstance(error, RequestValidationError)
    problems: dict[str, str] = {}
    for item in error.errors()[:MAX_PROBLEMS]:
        field = brief(".".join(str(part) for part in item["loc"][1:2]), str)
        problems.setdefault(field, _problem(field, item))
    return JSONResponse({"detail": f"the request: {'; '.join(problems.values())}"}, 422)


def _problem(field: str, item: dict[str, Any]) -> str:
    message = brief(item["msg"].removeprefix("Value error, "), str)
    if item["type"] == "json_invalid":
        return f"it is no JSON ({brief(item['ctx']['error'], str)} at {field})"
    if item["type"] == "extra_forbidden":
        return f"{field}: unknown key"
    given = "" if item["type"] in ("missing", "value_error") else f" (got {brief(item['input'])})"
    return f"{field}: {message}{given}" if field else f"{message}{given}"
