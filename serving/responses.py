"""Bodies of responses: PNGs in JSON, one PNG with all images, or arrays."""

import base64
import io
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from diffusion.images.pictures import contact_sheet, png_bytes
from diffusion.images.store import Images, save_npz


class ModelRef(BaseModel):
    """A model: its registered name or file name, its version if registered, and its SHA-256."""

    name: str
    version: int | None
    sha256: str


class ImagesResponse(BaseModel):
    """PNGs in base64 with their indices, labels if there are classes, settings, and NFE per image."""

    model: ModelRef
    settings: dict[str, Any]
    nfe: int
    indices: list[int]
    labels: list[int] | None
    images: list[str]


class StepEvent(BaseModel):
    """The model's predictions of some images after `step` of `steps` steps, as PNGs in base64."""

    step: int
    steps: int
    indices: list[int]
    images: list[str]


class ModelCard(BaseModel):
    """A served model: its state, metadata, default settings, limits, and the best cell for each NFE."""

    model: ModelRef
    state: Literal["serving", "draining"]
    card: dict[str, Any]
    usual: dict[str, Any]
    front: list[dict[str, Any]]
    limits: dict[str, int]


class Problem(BaseModel):
    """What is wrong and what to do, in one sentence."""

    detail: str


def encode_pngs(images: Images) -> list[str]:
    """Return each image as a PNG in base64."""
    return [base64.b64encode(png_bytes(image)).decode() for image in images]


def images_response(images: Images, about: dict[str, Any]) -> ImagesResponse:
    """Return images (N, H, W, C) with their metadata."""
    return ImagesResponse(**about, images=encode_pngs(images))


def format_response(form: str, images: Images, about: dict[str, Any]) -> Response:
    """Return images (N, H, W, C) and their metadata as `json`, `grid` or `npz`."""
    if form == "json":
        return JSONResponse(images_response(images, about).model_dump(mode="json"))
    if form == "grid":
        return Response(png_bytes(contact_sheet(images)), media_type="image/png")
    buffer = io.BytesIO()
    save_npz(buffer, images, about["labels"])
    return Response(buffer.getvalue(), media_type="application/x-npz")
