"""Images on the way between two: their codes, an arc between these, and each point of it denoised."""

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
from diffusion.system.errors import UsageError
from diffusion.system.section import PositiveInt, Seed
from serving.engine_loop import PendingImages
from serving.loaded_model import ServedModel
from serving.requests import Index, SampleRequest, check_count, request_condition
from serving.serve_config import MAX_BODY, MAX_IMAGES

EncodedImage = Annotated[str, Field(max_length=MAX_BODY)]  # a file in base64


class InterpolationRequest(SampleRequest):
    """Images between two seeds' images of the first index, or between two real images.

    A real image is its number in the store, or a picture's file in base64. `frames` counts the ends. All is
    deterministic: eta is 0, whatever is usual.
    """

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
    """The two ends of a way through a model, and the orders that make it.

    Between seeds an end is the image that its seed makes. Between images it is the one that comes back from
    its code, by DDIM without guidance and clipping, whatever is asked.
    """

    def __init__(self, model: ServedModel, asked: InterpolationRequest, store: Path) -> None:
        self._model, self._asked = model, asked
        settings = model.meant(asked).model_copy(update={"eta": 0.0})
        check_count(asked.frames, model.config)
        if asked.images is None:
            self.settings, self._pixels = settings, None
            one = request_condition(asked, settings, model.artefact).rows(slice(1))
            self._condition = one.rows(torch.tensor([0, 0]))
            return
        own = {
            "sampler": "ddim",
            "sampler_options": {},
            "guidance": 0.0,
            "clip": False,
        }
        self.settings = settings.guided_everywhere().model_copy(update=own)
        given = [_given(image, store, model.artefact, i) for i, image in enumerate(asked.images)]
        klass = None if asked.class_name is None else str(asked.class_name)
        self._condition = end_condition(model.artefact, [one.label for one in given], klass)
        self._pixels = to_model(to_nchw(np.stack([one.pixels for one in given])))

    def encode(self) -> PendingImages:
        """The order for the codes of real images; those of seeds are their noise."""
        assert self._pixels is not None
        course = CustomTrajectory(self._pixels, encoding, _as_it_is)
        return self._model.runner.add(self.settings, range(2), self._condition, course=course)

    def decode(self, codes: Tensor | None) -> PendingImages:
        """The order for all images between the codes, of seeds where there are none."""
        ends = self._noise() if codes is None else codes
        points, condition = interpolate_codes(ends, self._condition, self._asked.frames)
        course = CustomTrajectory(points, build_sampler(self.settings))
        indices = range(self._asked.frames)
        return self._model.runner.add(self.settings, indices, condition, self._asked.every, course)

    def _noise(self) -> Tensor:
        assert self._asked.seeds is not None
        spec, index = self._model.artefact.network, self._asked.wanted[0]
        shape = (spec.in_channels, spec.image_size, spec.image_size)
        return torch.cat([ImageNoise(seed, [index], shape).draw() for seed in self._asked.seeds])


def _as_it_is(x: Tensor) -> Tensor:
    return x


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
