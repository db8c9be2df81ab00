"""From an order to its answer: as a whole, or as events while the images are made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from torch import Tensor

from diffusion.engine.engine import Full
from diffusion.engine.job import ChunkStep
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.sample.nan_guard import NonFiniteError
from diffusion.system.errors import UsageError
from serving.engine_loop import PendingImages
from serving.loaded_model import ServedModel
from serving.middleware import model_headers
from serving.responses import FORMATS, Problem, StepEvent, encode_pngs, images_response
from serving.service import Service

CLIENT_CLOSED_REQUEST = 499  # nobody reads it: nginx's word for a client that has left


@contextlib.contextmanager
def http_errors(service: Service, model: ServedModel | None = None) -> Iterator[ServedModel]:
    """A model, by default the one that answers; HTTPException when what the block orders is not taken."""
    if not service.is_ready:
        raise HTTPException(503, "the server is about to stop: ask another one", {"Connection": "close"})
    model = model or service.current
    try:
        yield model
    except UsageError as error:
        raise HTTPException(422, str(error)) from None
    except Full as error:
        seconds = model.runner.seconds_left
        raise HTTPException(
            429, f"{error}: try again in {seconds} s", {"Retry-After": str(seconds)}
        ) from None


def with_model_headers(response: Response, model: ServedModel) -> Response:
    """The answer with the name of the model that made it, whichever serves by now."""
    response.raw_headers.extend(model_headers(model.name))
    return response


async def respond(
    service: Service, model: ServedModel, order: PendingImages, form: str, request: Request
) -> Response:
    """The images as the client wants them; an order whose client leaves is given up."""
    images = await wait_for_images(service, model, order, request)
    if images is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return await asyncio.to_thread(FORMATS[form], model.made(order, images))


async def wait_for_images(
    service: Service, model: ServedModel, order: PendingImages, request: Request
) -> Tensor | None:
    """What an order makes; None, and the order is given up, when the client leaves before.

    HTTPException where its numbers are none.
    """
    with _given_up(service, model, order):
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
        ends: list[asyncio.Future[Any]] = [order.made, gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not order.made.done():
            return None
        try:
            return await _images(order)
        except NonFiniteError as error:  # of what was asked, as too strong a guidance
            raise HTTPException(422, str(error)) from None


async def sse_events(service: Service, model: ServedModel, order: PendingImages) -> AsyncIterator[bytes]:
    """Server-sent events: `step` with images as they look by then, at last `images`, or `error`."""
    while (stepped := await order.news.get()) is not None:
        yield _event("step", await asyncio.to_thread(_seen, order, stepped))
    try:
        made = model.made(order, await _images(order))
        yield _event("images", await asyncio.to_thread(images_response, made))
    except (NonFiniteError, HTTPException) as error:
        yield _event("error", Problem(detail=getattr(error, "detail", str(error))))


class EventStreamResponse(StreamingResponse):
    """Events of an order, which is given up when the client leaves, wherever that is noticed."""

    def __init__(
        self, events: AsyncIterator[bytes], service: Service, model: ServedModel, order: PendingImages
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx is not to collect them
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._order = service, model, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with _given_up(*self._order):
            await super().__call__(scope, receive, send)


@contextlib.contextmanager
def _given_up(service: Service, model: ServedModel, order: PendingImages) -> Iterator[None]:
    """Whatever ends the block ends the order."""
    try:
        yield
    finally:
        if not order.made.done():
            service.metrics.gone.inc()
        model.runner.cancel(order)


async def _gone(request: Request) -> None:
    """Returns when the client has left. Its request has been read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _images(order: PendingImages) -> Tensor:
    """The images; HTTPException when the server stops before they are made."""
    try:
        return await order.made
    except asyncio.CancelledError:
        if not order.made.cancelled():  # not the order but this task is to end
            raise
        raise HTTPException(503, "the server stopped before these images were made") from None


def _seen(order: PendingImages, stepped: ChunkStep) -> StepEvent:
    step = stepped.step
    return StepEvent(
        step=step.done,
        steps=step.total,
        indices=list(order.job.indices[stepped.images]),
        images=encode_pngs(to_nhwc(to_uint8(step.x0_hat))),
    )


def _event(name: str, data: BaseModel) -> bytes:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n".encode()
