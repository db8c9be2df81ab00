"""The routes for edits. A body is JSON, or the picture itself with the other keys in the query."""

import base64
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from serving.edits import start_edit
from serving.handlers import EventStreamResponse, respond
from serving.schemas import EditEventsRequest, EditsRequest, EditsResponse
from serving.service import Service

Responses = dict[int | str, dict[str, Any]]

PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
BODIES = {
    "requestBody": {
        "content": {
            kind: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "Other keys are in the query.",
                }
            }
            for kind in PICTURE_TYPES
        }
    }
}


class PictureRoute(APIRoute):
    """A route that takes JSON, or a picture: the key `image`, with the other keys in the query."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            return await handler(await as_json(request) if kind in PICTURE_TYPES else request)

        return handle


async def as_json(request: Request) -> Request:
    """Return the request with a picture as the equivalent one with JSON."""
    values = {name: query_value(text) for name, text in request.query_params.items()}
    klass = request.query_params.get("class")
    if klass is not None and not isinstance(values["class"], str):
        values["class"] = klass  # a text, so that a class may be named 3, true or null
    if isinstance(values.get("operator"), str):  # the query's form has a blank for the + of a product
        values["operator"] = values["operator"].replace(" ", "+")
    values["image"] = base64.b64encode(await request.body()).decode()
    pending: list[Message] = [
        {"type": "http.request", "body": json.dumps(values).encode(), "more_body": False}
    ]

    async def receive() -> Message:
        return pending.pop() if pending else await request.receive()

    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    return Request({**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}, receive)


def query_value(text: str) -> Any:
    """Return the value of a key in the query: JSON, such as a number or a list, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def edit_routes(service: Service, results: Responses, events: Responses) -> APIRouter:
    """Return the routes, with the descriptions of their responses."""
    router = APIRouter(route_class=PictureRoute)

    @router.post("/v1/edits", response_model=EditsResponse, responses=results, openapi_extra=BODIES)
    async def edits(body: EditsRequest, request: Request) -> Response:
        """Fill, restore or sample again a picture, and return all results. A disconnect cancels them."""
        return await respond(await start_edit(service, body), body.format, request)

    @router.post("/v1/edits/events", response_class=Response, responses=events, openapi_extra=BODIES)
    async def edit_events(body: EditEventsRequest) -> Response:
        """Edit a picture and send server-sent events, as /v1/images/events; `images` as of /v1/edits."""
        return EventStreamResponse(await start_edit(service, body, body.every))

    return router
