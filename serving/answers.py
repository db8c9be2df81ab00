"""What a request is answered with: PNGs in JSON, one PNG of all, or arrays."""

import base64
import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from diffusion.images.npz import save_npz
from diffusion.images.pictures import contact_print, png_bytes
from diffusion.images.store import Images


class ModelName(BaseModel):
    """Which model it was: the registered name or the file, its version there, and what cards know it by."""

    name: str
    version: int | None
    sha256: str


class ImagesAnswer(BaseModel):
    """PNGs in base64, the index of each, its label where the model has classes, and how they were made.

    `evaluations` is how often the network saw each image.
    """

    model: ModelName
    settings: dict[str, Any]
    evaluations: int
    indices: list[int]
    labels: list[int] | None
    images: list[str]


class EventAnswer(BaseModel):
    """Some of the images as they look after so many of the steps: what the model makes of them by then."""

    step: int
    steps: int
    indices: list[int]
    images: list[str]


class ModelCard(BaseModel):
    """A model and its state, what its file says of it, how it samples when nothing is asked, and its limits.

    `front` has its sweep's best cell for each budget of network evaluations an image.
    """

    model: ModelName
    state: Literal["serving", "draining"]
    card: dict[str, Any]
    usual: dict[str, Any]
    front: list[dict[str, Any]]
    limits: dict[str, int]


class ModelsAnswer(BaseModel):
    """The models that are at work: one, and beside it those that end what they have begun."""

    models: list[ModelCard]


class Health(BaseModel):
    """How the server is."""

    status: str


class Problem(BaseModel):
    """What is wrong, and what to do, in a sentence."""

    detail: str


class Made(NamedTuple):
    """Images (N, H, W, C), and what is said beside them."""

    images: Images
    model: ModelName
    settings: dict[str, Any]
    evaluations: int
    indices: list[int]
    labels: list[int] | None


def pngs(images: Images) -> list[str]:
    """Each image as a PNG in base64."""
    return [base64.b64encode(png_bytes(image)).decode() for image in images]


def in_json(made: Made) -> ImagesAnswer:
    """The images one by one."""
    return ImagesAnswer(
        model=made.model,
        settings=made.settings,
        evaluations=made.evaluations,
        indices=made.indices,
        labels=made.labels,
        images=pngs(made.images),
    )


def _json(made: Made) -> Response:
    return JSONResponse(in_json(made).model_dump(mode="json"))


def _grid(made: Made) -> Response:
    return Response(png_bytes(contact_print(made.images)), media_type="image/png")


def _npz(made: Made) -> Response:
    buffer = io.BytesIO()
    save_npz(buffer, made.images, made.labels)
    return Response(buffer.getvalue(), media_type="application/x-npz")


FORMATS: dict[str, Callable[[Made], Response]] = {"json": _json, "grid": _grid, "npz": _npz}
