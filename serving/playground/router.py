"""The page and its routes: choices, NFE, model versions, and interpolation."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from diffusion.analysis.image_inputs import load_input
from diffusion.images.pictures import png_bytes
from diffusion.report.theme import render
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import PositiveInt
from serving.handlers import CLIENT_CLOSED_REQUEST, EventStreamResponse, Work, http_errors, wait_for_images
from serving.model_source import FixedSource, PublishedModel
from serving.playground.choices import choices_of, nfe_preview
from serving.playground.interpolation import Interpolation, InterpolationRequest
from serving.schemas import SampleRequest
from serving.service import Service
from tracking.keys import model_name
from tracking.registry.registered_models import fetch_version_files, list_versions

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an update the page must load the new scripts
}


class VersionRequest(BaseModel):
    """A version of the registered model; None selects the model given at start."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: PositiveInt | None


def playground(service: Service, store: Path) -> APIRouter:
    """Return the routes of the page over a service, with real images from `store`."""
    router = APIRouter()
    _add_page(router)
    _add_versions(router, service)

    @router.get("/playground/choices")
    def choices() -> dict[str, Any]:
        """Return the options of the page."""
        return choices_of(service.current, store)

    @router.get("/playground/images/{number}")
    def image(number: int) -> Response:
        """Return a real image as PNG."""
        try:
            given = load_input(str(number), store, service.current.artefact)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        return Response(png_bytes(given.pixels), media_type="image/png")

    @router.post("/playground/guided")
    def guided(body: SampleRequest) -> dict[str, Any]:
        """Return the NFE of a request without sampling."""
        with http_errors(service) as model:
            return nfe_preview(model, body)

    @router.post("/playground/between")
    async def between(body: InterpolationRequest, request: Request) -> Response:
        """Interpolate between two images; the events are those of /v1/images/events."""
        codes = None
        with http_errors(service) as model:
            ends = await asyncio.to_thread(Interpolation, model, body, store)
        if body.images is not None:
            with http_errors(service, model):
                encoding = Work(service, model, ends.encode())
            codes = await wait_for_images(encoding, request)
            if codes is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        with http_errors(service, model):
            return EventStreamResponse(Work(service, model, ends.decode(codes)))

    return router


def _add_page(router: APIRouter) -> None:
    @router.get("/", response_class=Response)
    def index() -> Response:
        """Return the page."""
        style = Markup((STATIC / "playground.css").read_text(encoding="utf-8"))
        return HTMLResponse(render(FOLDER / "page.html.j2", style=style), headers=HEADERS)

    @router.get("/favicon.ico", status_code=204)
    def icon() -> None:
        """Return nothing: browsers request an icon."""

    @router.get("/playground/{name}.js", response_class=Response)
    def script(name: str) -> Response:
        """Return a script of the page."""
        scripts = {path.stem: path for path in STATIC.glob("*.js")}
        if name not in scripts:
            raise HTTPException(404, "there is no such script")
        kind = "text/javascript; charset=utf-8"
        return Response(scripts[name].read_bytes(), media_type=kind, headers=HEADERS)


def _add_versions(router: APIRouter, service: Service) -> None:
    """Add the routes that list the registered versions and serve one of them."""
    first = service.source

    def registered_name() -> str:
        """Return the registered name of the model that serves, for a file that of its data set."""
        model = service.current
        registered = model.published.version is not None
        return model.published.name if registered else model_name(model.artefact.data.name)

    @router.get("/playground/versions")
    def versions() -> dict[str, Any]:
        """Return the registered versions, newest first, and the chosen one, or `why` there are none."""
        name, why = registered_name(), None
        found: list[dict[str, Any]] = []
        try:
            found = [{"version": one.version, "champion": one.is_champion} for one in list_versions(name)]
        except DiffctlError as error:
            why = str(error)
        chosen = None if service.source is first else service.current.published.version
        return {"name": name, "versions": found, "chosen": chosen, "why": why}

    @router.post("/playground/version")
    async def version(body: VersionRequest) -> dict[str, str]:
        """Serve another version; the old one finishes its requests."""
        name, source = registered_name(), first
        try:
            if body.version is not None:
                files = await asyncio.to_thread(fetch_version_files, name, body.version)
                source = FixedSource(PublishedModel(name, *files))
            await service.refresh(source)
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        except DiffctlError as error:
            raise HTTPException(503, str(error)) from None
        return {"name": service.ref.name}
