"""Edits of pictures over HTTP: a request decoded, measured and submitted as a job of the engine."""

import asyncio
from typing import Any, NamedTuple

import torch

from diffusion.edit.editor import count_edit_nfe, edit_trajectory
from diffusion.edit.inputs import fit_input, masked_operator, measure, picture_shape
from diffusion.edit.operators import LinearOperator, Shape, build_operator
from diffusion.images.image_size import format_pixels, format_size
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import build_process
from diffusion.protocol.edits import chosen_edit
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import CustomTrajectory
from serving.encoded_pictures import decode_base64
from serving.handlers import Work, http_errors
from serving.schemas import EditRequest
from serving.served_model import PendingImages, ServedModel
from serving.service import Service

CALLS_PER_STEP = 4  # NFE of a step of the costliest sampler, Heun's with guidance


class PreparedEdit(NamedTuple):
    """What a job of the engine needs, and the metadata that the edit adds to its response."""

    settings: SampleSettings
    condition: Condition
    trajectory: CustomTrajectory
    about: dict[str, Any]

    def submit(self, model: ServedModel, indices: list[int], every: int) -> PendingImages:
        """Queue the images; raise UsageError and Full as `EngineLoop.submit`."""
        pending = model.loop.submit(self.settings, indices, self.condition, every, self.trajectory)
        pending.about = self.about
        return pending


async def start_edit(service: Service, request: EditRequest, every: int = 0) -> Work:
    """Decode the pictures in a thread and queue the images; raise HTTPException if that fails."""
    while True:
        async with service.preparing:
            with http_errors(service) as model:
                prepared = await asyncio.to_thread(prepare_edit, model, request)
        if model.loop.is_running or model is service.current:
            break  # else a new champion has replaced the model meanwhile
    with http_errors(service, model):
        return Work(service, model, prepared.submit(model, list(request.image_indices), every))


def prepare_edit(model: ServedModel, request: EditRequest) -> PreparedEdit:
    """Return the job of a request; raise UsageError if it does not fit the model or the limits."""
    settings = model.resolve(request, best_cell=False)
    text = request.operator or (None if request.mask is None else "mask")
    own = request.method_options
    edit = chosen_edit(request.method, own, text, request.strength, request.sigma_y, "the request")
    image_shape, count = model.artefact.network.shape, len(request.image_indices)
    operator = None if edit.operator is None else _operator(request, edit.operator, image_shape)
    channels, height, width = picture_shape(operator, image_shape, degrade=request.degrade)
    picture = decode_base64(request.image, "the image", channels)
    measurement = measure(
        operator,
        [fit_input(picture, (height, width), operator, degrade=request.degrade)],
        edit.sigma_y,
        degrade=request.degrade,
        seed=request.seed,
    ).rows(torch.zeros(count, dtype=torch.int64))
    condition = model.edit_condition(settings, count, request.class_name)
    process, most = build_process(model.artefact.process), CALLS_PER_STEP * model.config.steps
    nfe = count_edit_nfe(edit, settings, measurement, process, most)
    trajectory = edit_trajectory(edit, settings, measurement.to(model.device), process, nfe)
    about = {
        "edit": {
            **edit.model_dump(mode="json"),
            "method_options": edit.options.model_dump(mode="json"),
            "operator": None if operator is None else operator.text,
        },
        "resized": None
        if picture.shape[:2] == (height, width)
        else f"the middle of {format_pixels(picture.shape[:2])} at {format_size((height, width))}",
    }
    if request.class_name is None:
        about["labels"] = None
    return PreparedEdit(settings, condition, trajectory, about)


def _operator(request: EditRequest, text: str, image_shape: Shape) -> LinearOperator:
    if request.mask is None:
        return build_operator(text, image_shape)
    if request.mask == "alpha":
        mask = 255 - decode_base64(request.image, "the image", 4)[:, :, 3:]
    else:
        mask = decode_base64(request.mask, "the mask", 1)
    return masked_operator(text, image_shape, mask)
