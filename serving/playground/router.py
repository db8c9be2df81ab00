"""The page and its routes: choices, NFE, model versions, and interpolation between two images."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.analysis.image_inputs import InputImage, end_condition, load_input
from diffusion.analysis.inversion import check_trajectories, encoding, interpolate_codes
from diffusion.images.pictures import png_bytes
from diffusion.images.pixels import to_model, to_nchw
from diffusion.model.model_file import Artefact
from diffusion.process.noise import ImageNoise
from diffusion.report.theme import render
from diffusion.sample.conditions import chosen_condition
from diffusion.sample.generate import check_settings
from diffusion.sample.sampler import CustomTrajectory, adds_noise, build_sampler
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import PositiveInt, Seed
from serving.encoded_pictures import decode_base64
from serving.handlers import CLIENT_CLOSED_REQUEST, EventStreamResponse, Work, http_errors, wait_for_images
from serving.model_source import FixedSource, published_version
from serving.playground.choices import choices_of, nfe_preview
from serving.schemas import MAX_EDIT_BODY, MAX_IMAGES, Index, SampleRequest, StrictRequest, check_count
from serving.served_model import PendingImages, ServedModel
from serving.service import Service
from tracking.keys import model_name, title_of
from tracking.registry.registered_models import list_versions

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
MAX_SEED = 2**53 - 1  # the largest integer up to which a number in JavaScript is exact
EncodedImage = Annotated[str, Field(max_length=MAX_EDIT_BODY)]  # a file in base64


class VersionRequest(StrictRequest):
    """A version of the registered model; None selects the model given at start."""

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
        """Return a real image as PNG, its label in X-Label."""
        try:
            given = load_input(str(number), store, service.current.artefact)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        headers = {} if given.label is None else {"X-Label": str(given.label)}
        return Response(png_bytes(given.pixels), media_type="image/png", headers=headers)

    @router.post("/playground/guided")
    def guided(body: SampleRequest) -> dict[str, Any]:
        """Return the NFE of a request without sampling."""
        with http_errors(service) as model:
            return nfe_preview(model, body)

    @router.post("/playground/between")
    async def between(body: InterpolationRequest, request: Request) -> Response:
        """Interpolate between two images; the events are those of /v1/images/events."""
        with http_errors(service) as model:
            ends = await asyncio.to_thread(Interpolation, model, body, store)
        codes = None
        if body.images is not None:
            with http_errors(service, model):
                encoded = Work(service, model, ends.encode())
            codes = await wait_for_images(encoded, request)
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
        page = render(FOLDER / "page.html.j2", style=style, max_seed=MAX_SEED)
        return HTMLResponse(page, headers=HEADERS)

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
        return model.published.name if registered else model_name(title_of(model.artefact.data.name))

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
                source = FixedSource(await asyncio.to_thread(published_version, name, body.version))
            await service.refresh(source)
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        except DiffctlError as error:
            raise HTTPException(503, str(error)) from None
        return {"name": service.current.ref.name}


class InterpolationRequest(SampleRequest):
    """A request for `frames` images, at η = 0, from one seed or real image (a number or file) to another."""

    frames: int = Field(default=17, ge=2, le=MAX_IMAGES)
    seeds: tuple[Seed, Seed] | None = Field(default=None, strict=False)
    images: tuple[Index | EncodedImage, Index | EncodedImage] | None = Field(default=None, strict=False)
    every: PositiveInt = 10

    @model_validator(mode="after")
    def _has_two_ends(self) -> Self:
        if (self.seeds is None) == (self.images is None):
            raise ValueError("give two seeds or two images")
        return self


class Interpolation:
    """The two ends of an interpolation, and the jobs that compute it: an arc (slerp) between their codes.

    An end is the image of its seed, or the reconstruction of a real image from its code: by DDIM without
    guidance and clipping, whatever the request has. No classifier guides.
    """

    def __init__(self, model: ServedModel, request: InterpolationRequest, store: Path) -> None:
        self._model, self._request = model, request
        settings = model.resolve(request).model_copy(update={"eta": 0.0, "classifier": None})
        check_count(request.frames, model.config)
        if request.seeds is not None:
            self.settings, spec, index = settings, model.artefact.network, request.image_indices[0]
            if spec.low_res is not None:
                raise UsageError("a model that enlarges images has no code of a seed alone: give two images")
            if adds_noise(settings):
                found = f"sampler {settings.sampler} adds noise in its steps"
                raise UsageError(f"{found}, and an image is not that of its first noise alone: choose ddim")
            self._condition = chosen_condition(model.artefact, settings, [index] * 2, request.class_name)
            scale = check_settings(model.artefact, settings).initial_noise_scale
            self._ends = torch.cat(
                [ImageNoise(seed, [index], spec.shape, scale).draw() for seed in request.seeds]
            )
            return
        assert request.images is not None
        check_trajectories(model.artefact, "a code")
        ddim = {"sampler": "ddim", "sampler_options": {}, "guidance": 0.0, "clip": False}
        self.settings = settings.guided_everywhere().model_copy(update=ddim)
        given = [_given(image, store, model.artefact, i) for i, image in enumerate(request.images)]
        pixels, labels = np.stack([one.pixels for one in given]), [one.label for one in given]
        self._condition = end_condition(model.artefact, labels, request.class_name, pixels)
        self._ends = to_model(to_nchw(pixels))

    def encode(self) -> PendingImages:
        """Submit the encoding of the real images."""
        trajectory = CustomTrajectory(lambda rows: encoding, self._ends, lambda x: x)
        return self._model.loop.submit(self.settings, range(2), self._condition, trajectory=trajectory)

    def decode(self, codes: Tensor | None) -> PendingImages:
        """Submit all frames between the codes, or between the noise of the seeds without codes."""
        ends = self._ends if codes is None else codes
        points, condition = interpolate_codes(ends, self._condition, self._request.frames)
        trajectory = CustomTrajectory(lambda rows: build_sampler(self.settings), points)
        indices = range(self._request.frames)
        return self._model.loop.submit(self.settings, indices, condition, self._request.every, trajectory)


def _given(image: int | str, store: Path, artefact: Artefact, position: int) -> InputImage:
    if isinstance(image, int):
        return load_input(str(image), store, artefact)
    spec, name = artefact.network, f"the {('first', 'second')[position]} picture"
    return InputImage(decode_base64(image, name, spec.in_channels, spec.size), None)
