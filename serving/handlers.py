"""Responses of requests for images: all at once, or server-sent events while they are sampled."""

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from torch import Tensor

from diffusion.engine.engine import Full
from diffusion.engine.job import ChunkStep
from diffusion.images.pictures import contact_sheet, png_bytes
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images, save_npz
from diffusion.sample.sampler import NonFiniteError
from diffusion.system.errors import DiffctlError, UsageError
from serving.middleware import FAILED, model_headers
from serving.schemas import RETRY_SECONDS, EditsResponse, ImagesResponse, Problem, StepEvent
from serving.served_model import PendingImages, ServedModel, StoppedError
from serving.service import Service

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected


class Work(NamedTuple):
    """Images that a request waits for, and the model that makes them."""

    service: Service
    model: ServedModel
    pending: PendingImages

    @contextlib.contextmanager
    def cancelled_at_end(self) -> Iterator[None]:
        """Cancel the images at the end of the block unless they are finished."""
        try:
            yield
        finally:
            if not self.pending.images.done():
                self.service.metrics.gone.inc()
            self.model.loop.cancel(self.pending)


@contextlib.contextmanager
def http_errors(service: Service, model: ServedModel | None = None) -> Iterator[ServedModel]:
    """Yield a model, by default the one that serves; turn errors of the block into HTTPException."""
    if not service.is_ready:
        raise HTTPException(503, "the server is about to stop: use another one", {"Connection": "close"})
    model = model or service.current
    if not model.loop.is_running:  # another model was chosen, and this one has stopped
        raise HTTPException(503, "another model serves now: try again")
    try:
        yield model
    except UsageError as error:
        raise HTTPException(422, str(error)) from None
    except Full as error:
        sentence = f"{error}: try again in {RETRY_SECONDS} s"
        raise HTTPException(429, sentence, {"Retry-After": str(RETRY_SECONDS)}) from None


def encode_pngs(images: Images) -> list[str]:
    """Return each image as a PNG in base64."""
    return [base64.b64encode(png_bytes(image)).decode() for image in images]


def images_response(images: Images, about: dict[str, Any]) -> ImagesResponse:
    """Return images (N, H, W, C) with their metadata."""
    response = EditsResponse if "edit" in about else ImagesResponse
    return response(**about, images=encode_pngs(images))


def format_response(form: str, images: Images, about: dict[str, Any]) -> Response:
    """Return images (N, H, W, C) and their metadata as `json`, `grid` or `npz`."""
    if form == "json":
        return JSONResponse(images_response(images, about).model_dump(mode="json"))
    if form == "grid":
        return Response(png_bytes(contact_sheet(images)), media_type="image/png")
    buffer = io.BytesIO()
    save_npz(buffer, images, about["labels"])
    return Response(buffer.getvalue(), media_type="application/x-npz")


async def respond(work: Work, form: str, request: Request) -> Response:
    """Return the images in the format `form`; cancel them if the client disconnects."""
    images = await wait_for_images(work, request)
    if images is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    about = work.model.describe(work.pending)
    response = await asyncio.to_thread(format_response, form, to_nhwc(images), about)
    response.headers.update(model_headers(work.model.ref))
    return response


async def wait_for_images(work: Work, request: Request) -> Tensor | None:
    """Return the images, None if the client disconnects; raise HTTPException if they fail."""
    with work.cancelled_at_end():
        gone: asyncio.Future[None] = asyncio.ensure_future(_disconnected(request))
        ends: list[asyncio.Future[Any]] = [work.pending.images, gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not work.pending.images.done():
            return None
        try:
            return work.pending.images.result()
        except (NonFiniteError, UsageError) as error:  # of the request, such as too strong guidance
            raise HTTPException(422, str(error)) from None
        except StoppedError as error:
            raise HTTPException(503, str(error)) from None


async def sse_events(work: Work) -> AsyncIterator[bytes]:
    """Yield server-sent events: `step` with intermediate images, at the end `images` or `error`."""
    pending = work.pending
    while (stepped := await pending.steps.get()) is not None:
        yield _event("step", await asyncio.to_thread(_step_event, pending, stepped))
    try:
        images = to_nhwc(await pending.images)
        yield _event("images", await asyncio.to_thread(images_response, images, work.model.describe(pending)))
    except DiffctlError as error:
        yield _event("error", Problem(detail=str(error)))
    except Exception as error:  # the client sees no details
        values = {"message": "the images of a request failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(values)
        yield _event("error", Problem(detail=FAILED))


class EventStreamResponse(StreamingResponse):
    """Server-sent events of pending images, which are cancelled if the client disconnects."""

    def __init__(self, work: Work) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no buffering in nginx
        headers |= model_headers(work.model.ref)
        super().__init__(sse_events(work), media_type="text/event-stream", headers=headers)
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        with self._work.cancelled_at_end():
            await super().__call__(scope, receive, send)


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected; the request has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _step_event(pending: PendingImages, stepped: ChunkStep) -> StepEvent:
    step = stepped.step
    return StepEvent(
        step=step.done,
        steps=step.total,
        indices=list(pending.job.indices[stepped.images]),
        images=encode_pngs(to_nhwc(to_uint8(step.x0_hat))),
    )


def _event(name: str, data: BaseModel) -> bytes:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n".encode()
