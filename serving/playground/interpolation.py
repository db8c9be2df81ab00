"""Interpolation between two images: their codes, an arc (slerp) between them, and its points denoised."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.analysis.image_inputs import InputImage, end_condition, load_input
from diffusion.analysis.inversion import encoding, interpolate_codes
from diffusion.engine.job import CustomTrajectory
from diffusion.images.pictures import decode_picture
from diffusion.images.pixels import to_model, to_nchw
from diffusion.model.model_file import Artefact
from diffusion.process.noise import ImageNoise
from diffusion.protocol.samplers import build_sampler
from diffusion.sample.generate import check_settings, chosen_condition
from diffusion.system.errors import UsageError
from diffusion.system.section import PositiveInt, Seed
from serving.schemas import MAX_BODY, MAX_IMAGES, Index, SampleRequest, check_count
from serving.served_model import PendingImages, ServedModel

EncodedImage = Annotated[str, Field(max_length=MAX_BODY)]  # a file in base64


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
    """The two ends of an interpolation, and the jobs that compute it.

    An end is the image of its seed, or the reconstruction of a real image from its code: by DDIM without
    guidance and clipping, whatever the request has. No classifier guides.
    """

    def __init__(self, model: ServedModel, request: InterpolationRequest, store: Path) -> None:
        self._model, self._request = model, request
        settings = model.resolve(request).model_copy(update={"eta": 0.0, "classifier": None})
        check_count(request.frames, model.config)
        if request.seeds is not None:
            self.settings, spec, index = settings, model.artefact.network, request.image_indices[0]
            self._condition = chosen_condition(model.artefact, settings, [index] * 2, request.class_name)
            scale = check_settings(model.artefact, settings).initial_noise_scale
            shape = (spec.in_channels, spec.image_size, spec.image_size)
            self._ends = torch.cat([ImageNoise(seed, [index], shape, scale).draw() for seed in request.seeds])
            return
        assert request.images is not None
        ddim = {"sampler": "ddim", "sampler_options": {}, "guidance": 0.0, "clip": False}
        self.settings = settings.guided_everywhere().model_copy(update=ddim)
        given = [_given(image, store, model.artefact, i) for i, image in enumerate(request.images)]
        klass = None if request.class_name is None else str(request.class_name)
        self._condition = end_condition(model.artefact, [one.label for one in given], klass)
        self._ends = to_model(to_nchw(np.stack([one.pixels for one in given])))

    def encode(self) -> PendingImages:
        """Submit the encoding of the real images."""
        trajectory = CustomTrajectory(self._ends, encoding, lambda x: x)
        return self._model.loop.submit(self.settings, range(2), self._condition, trajectory=trajectory)

    def decode(self, codes: Tensor | None) -> PendingImages:
        """Submit all frames between the codes, or between the noise of the seeds without codes."""
        ends = self._ends if codes is None else codes
        points, condition = interpolate_codes(ends, self._condition, self._request.frames)
        trajectory = CustomTrajectory(points, build_sampler(self.settings))
        indices = range(self._request.frames)
        return self._model.loop.submit(self.settings, indices, condition, self._request.every, trajectory)


def _given(image: int | str, store: Path, artefact: Artefact, position: int) -> InputImage:
    if isinstance(image, int):
        return load_input(str(image), store, artefact)
    name = f"the {('first', 'second')[position]} picture"
    try:
        content = base64.b64decode(image, validate=True)
    except binascii.Error:
        raise UsageError(f"{name} is not in base64") from None
    spec = artefact.network
    return InputImage(decode_picture(content, name, spec.image_size, spec.in_channels), None)
