"""What the sections `model` of all networks have in common, and what the data decides of a network."""

from functools import partial
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.model.network_registry import MODELS
from diffusion.system.references import check_name
from diffusion.system.registry_section import RegistrySection
from diffusion.system.section import NotBool, Probability, Side

CHANGES_RESULTS = False  # diffusion/code_digest.py

AUGMENTATION_NUMBERS = 9  # that describe how an image was transformed (2206.00364, table 6)
MAX_CLASSES = 100_000  # all of ImageNet has 21,841; a classifier gives as many channels


class ModelConfig(RegistrySection):
    """A network's shape, as its entry of MODELS has it, and what training reads of every one.

    `name` is the network, an entry of MODELS. `class_cond`: whether it takes labels. `dropout` is the
    share of features that training drops (diffusion/model/dropout.py). `gradient_checkpointing` computes
    features again in the backward pass instead of keeping them. A network that does neither refuses both.
    """

    CHOSEN_BY = "name"
    ENTRIES = MODELS

    name: Annotated[str, AfterValidator(partial(check_name, registry=MODELS))] = "unet"
    class_cond: bool = True
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False

    def check_size(self, image_size: int) -> None:
        """ValueError where it cannot be built for images of this side in pixels."""

    def least_parameters(self) -> int:
        """At least how many numbers it learns, in closed form: what is too large is not built to find out."""
        return 0


class NetworkSpec(ModelConfig):
    """A ModelConfig with what the data decides: all that is needed to build the network.

    `num_classes` 0 means unconditional. `null_class` adds the "no label" row that classifier-free guidance
    trains; its index is `num_classes`.
    """

    OF_ENTRY = "spec"

    image_size: Side
    in_channels: Annotated[int, Field(ge=1, le=4), NotBool]
    out_channels: Annotated[int, Field(ge=1, le=MAX_CLASSES), NotBool]
    num_classes: Annotated[int, Field(ge=0, le=MAX_CLASSES), NotBool] = 0
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
