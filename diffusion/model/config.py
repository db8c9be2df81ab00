"""What the sections `model` of all networks have in common, and what the data decides of a network."""

from functools import partial
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.model.registry import MODELS
from diffusion.system.chosen import ChosenSection
from diffusion.system.registry import known
from diffusion.system.section import PositiveInt, Probability


class ModelConfig(ChosenSection):
    """A network's shape, as its entry of MODELS has it, and what training reads of every one.

    `class_cond`: whether it takes labels. `dropout` is the share of features that training drops, by layers
    of diffusion/model/dropout.py; `gradient_checkpointing` computes them again instead of keeping them. A
    network that does neither refuses them.
    """

    CHOSEN_BY = "name"
    ENTRIES = MODELS

    name: Annotated[str, AfterValidator(partial(known, registry=MODELS))] = "unet"
    class_cond: bool = True
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False

    def check_size(self, image_size: int) -> None:
        """ValueError where it cannot be built for images of this side in pixels."""


class NetworkSpec(ModelConfig):
    """A ModelConfig with what the data decides: all that is needed to build the network.

    `num_classes` 0 means unconditional. `null_class` adds the "no label" row that classifier-free guidance
    trains; its index is `num_classes`.
    """

    OF_ENTRY = "spec"

    image_size: PositiveInt
    in_channels: Annotated[int, Field(ge=1, le=4)]
    out_channels: PositiveInt
    num_classes: Annotated[int, Field(ge=0)] = 0
    null_class: bool = False

    @model_validator(mode="after")
    def _size_and_classes_fit(self) -> Self:
        self.check_size(self.image_size)
        if self.null_class and not self.num_classes:
            raise ValueError("null_class needs classes (num_classes > 0)")
        return self

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives 2C channels: what it predicts, then v (iDDPM eq. 15)."""
        return self.out_channels == 2 * self.in_channels
