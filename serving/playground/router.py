"""The page's routes, beside those of every server: choices, costs, versions, and images between two."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

from diffusion.analysis.image_inputs import load_input
from diffusion.images.pictures import png_bytes
from diffusion.system.errors import DiffctlError, UsageError
from serving.engine_loop import PendingImages
from serving.handlers import (
    CLIENT_CLOSED_REQUEST,
    EventStreamResponse,
    http_errors,
    sse_events,
    wait_for_images,
    with_model_headers,
)
from serving.loaded_model import ServedModel
from serving.playground.choices import Choices, choices_of
from serving.playground.interpolation import Interpolation, InterpolationRequest
from serving.playground.model_choice import (
    ChoosableSource,
    VersionRequest,
    VersionsResponse,
    choose_version,
    list_versions,
)
from serving.playground.nfe_preview import NfePreview, nfe_preview
from serving.playground.page import page, script
from serving.requests import SampleRequest
from serving.service import Service


def playground(service: Service, source: ChoosableSource, store: Path) -> APIRouter:
    """The routes of a page over this service; real images are those of the store."""
    router = APIRouter()
    _add_page(router)
    _add_versions(router, service, source)

    @router.get("/playground/choices")
    def choices() -> Choices:
        """What there is to choose from."""
        return choices_of(service.current, store)

    @router.get("/playground/images/{number}")
    def image(number: int) -> Response:
        """A real image as PNG."""
        try:
            given = load_input(str(number), store, service.current.artefact)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        return Response(png_bytes(given.pixels), media_type="image/png")

    @router.post("/playground/guided")
    def guided(asked: SampleRequest) -> NfePreview:
        """What such images would cost, and where they would be guided."""
        with http_errors(service) as model:
            return nfe_preview(model, asked)

    @router.post("/playground/between")
    async def between(asked: InterpolationRequest, request: Request) -> Response:
        """Make the images between two, and tell of them as they come, as /v1/images/events does."""
        codes = None
        with http_errors(service) as model:
            ends = await asyncio.to_thread(Interpolation, model, asked, store)
        if asked.images is not None:
            encoded = _ordered(service, model, ends.encode)
            codes = await wait_for_images(service, model, encoded, request)
            if codes is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        order = _ordered(service, model, lambda: ends.decode(codes))
        return with_model_headers(
            EventStreamResponse(sse_events(service, model, order), service, model, order), model
        )

    return router


def _ordered(service: Service, model: ServedModel, begin: Callable[[], PendingImages]) -> PendingImages:
    """What `begin` orders; HTTPException when it is not taken."""
    if not model.runner.is_alive:  # another one was chosen meanwhile, and this one has ended
        raise HTTPException(503, "another model answers now: ask again")
    with http_errors(service, model):
        return begin()


def _add_page(router: APIRouter) -> None:
    @router.get("/", response_class=Response)
    def index() -> Response:
        """The page."""
        return page()

    @router.get("/favicon.ico", status_code=204)
    def icon() -> None:
        """None: browsers ask for one."""

    @router.get("/playground/{name}.js", response_class=Response)
    def part(name: str) -> Response:
        """A script of the page."""
        if (found := script(f"{name}.js")) is None:
            raise HTTPException(404, "there is no such script")
        return found


def _add_versions(router: APIRouter, service: Service, source: ChoosableSource) -> None:
    @router.get("/playground/versions")
    def versions() -> VersionsResponse:
        """The registered versions there are to choose from."""
        return list_versions(service, source)

    @router.post("/playground/version")
    async def version(asked: VersionRequest) -> dict[str, str]:
        """Have another version answer; what is being made is made to its end by the old one."""
        try:
            await choose_version(service, source, asked)
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        except DiffctlError as error:
            raise HTTPException(503, str(error)) from None
        return {"name": service.name.name}
