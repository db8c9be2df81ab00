"""What a request is answered with: PNGs in JSON, one PNG of all, or arrays."""

import base64
import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from diffusion.images.npz import save_npz
from diffusion.images.pictures import contact_sheet, png_bytes
from diffusion.images.store import Images


class ModelRef(BaseModel):
    """Which model it was: the registered name or the file, its version there, and what cards know it by."""

    name: str
    version: int | None
    sha256: str


class ImagesResponse(BaseModel):
    """PNGs in base64, the index of each, its label where the model has classes, and how they were made.

    `evaluations` is how often the network saw each image.
    """

    model: ModelRef
    settings: dict[str, Any]
    evaluations: int
    indices: list[int]
    labels: list[int] | None
    images: list[str]


class StepEvent(BaseModel):
    """Some of the images as they look after so many of the steps: what the model makes of them by then."""

    step: int
    steps: int
    indices: list[int]
    images: list[str]


class ModelCard(BaseModel):
    """A model and its state, what its file says of it, how it samples when nothing is asked, and its limits.

    `front` has its sweep's best cell for each budget of network evaluations an image.
    """

    model: ModelRef
    state: Literal["serving", "draining"]
    card: dict[str, Any]
    usual: dict[str, Any]
    front: list[dict[str, Any]]
    limits: dict[str, int]


class ModelsResponse(BaseModel):
    """The models that are at work: one, and beside it those that end what they have begun."""

    models: list[ModelCard]


class Health(BaseModel):
    """How the server is."""

    status: str


class Problem(BaseModel):
    """What is wrong, and what to do, in a sentence."""

    detail: str


class SampledImages(NamedTuple):
    """Images (N, H, W, C), and what is said beside them."""

    images: Images
    model: ModelRef
    settings: dict[str, Any]
    evaluations: int
    indices: list[int]
    labels: list[int] | None


def encode_pngs(images: Images) -> list[str]:
    """Each image as a PNG in base64."""
    return [base64.b64encode(png_bytes(image)).decode() for image in images]


def images_response(made: SampledImages) -> ImagesResponse:
    """The images one by one."""
    return ImagesResponse(
        model=made.model,
        settings=made.settings,
        evaluations=made.evaluations,
        indices=made.indices,
        labels=made.labels,
        images=encode_pngs(made.images),
    )


def _json(made: SampledImages) -> Response:
    return JSONResponse(images_response(made).model_dump(mode="json"))


def _grid(made: SampledImages) -> Response:
    return Response(png_bytes(contact_sheet(made.images)), media_type="image/png")


def _npz(made: SampledImages) -> Response:
    buffer = io.BytesIO()
    save_npz(buffer, made.images, made.labels)
    return Response(buffer.getvalue(), media_type="application/x-npz")


FORMATS: dict[str, Callable[[SampledImages], Response]] = {"json": _json, "grid": _grid, "npz": _npz}
