"""The networks by name, `model.name` in params.yaml, and what their sections share. It loads no torch.

A further one is a module with a builder, NetworkSpec → nn.Module, and an entry here. The module takes x
(B, C, H, W) in about [−1, 1], times (B,), whole or real, and labels (B,) exactly when it is conditional, and
gives (B, C, H, W), or 2C with iDDPM's v where the spec's variance is learned. With `augmented` a network
takes `augmentation` (B, 9) too: how images were transformed; without it they were not. With `low_res` it
takes `low_res` (B, C, h, w), images that it enlarges, and with `cond_noise` the `noise_level` (B,) of each.
A method `shard_units()` lists the modules that a sharded training gathers one after another; without it a
network is gathered whole. `project_weights(finite)`, where a network has it, is called after each step of the
optimiser.
"""

import operator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.images.image_size import ImageSize, Size, format_size, height_and_width
from diffusion.system.limits import MAX_COND_NOISE
from diffusion.system.registry import BuilderEntry, Registry, check_name, is_entry, load_reference, nearest
from diffusion.system.section import NotBool, RegistrySection, brief

if TYPE_CHECKING:
    from torch import nn

IN_CODE_DIGEST = False  # diffusion/code_digest.py

AUGMENTATION_NUMBERS = 9  # that describe how an image was transformed (2206.00364, table 6)
MAX_CLASSES = 100_000  # all of ImageNet has 21,841; a classifier gives as many channels


@dataclass(frozen=True)
class ModelEntry(BuilderEntry):
    """`builder` makes the network of a spec; `config` is the section's class, a subclass of ModelConfig.

    `spec` adds what the data decides; its class derives from both and from NetworkSpec. `transfer` is the
    rule for pretrained weights (diffusion/model/weight_transfer.py). Each is a "module:name".
    """

    builder: str
    config: str
    spec: str
    transfer: str = "diffusion.model.weight_transfer:transfer_unchanged"


MODELS: Registry[ModelEntry] = Registry(
    "model.name",
    "`NetworkSpec` → `nn.Module`",
    {
        "unet": ModelEntry(
            "diffusion.model.unet:UNet",
            "diffusion.model.unet_config:UNetConfig",
            "diffusion.model.unet_config:UNetSpec",
            transfer="diffusion.model.weight_transfer:transfer_conditioned",
        ),
        "dit": ModelEntry(
            "diffusion.model.dit:DiT",
            "diffusion.model.dit_config:DiTConfig",
            "diffusion.model.dit_config:DiTSpec",
            transfer="diffusion.model.weight_transfer:transfer_conditioned",
        ),
        "edm2": ModelEntry(
            "diffusion.model.edm2:EDM2",
            "diffusion.model.edm2_config:EDM2Config",
            "diffusion.model.edm2_config:EDM2Spec",
        ),
    },
)


def build_network(spec: "NetworkSpec") -> "nn.Module":
    """Return the network of the spec, its weights drawn from torch's global generator."""
    network: nn.Module = load_reference(MODELS[spec.name].builder)(spec)
    return network


class ModelConfig(RegistrySection):
    """The common options of all networks; a subclass has those of its entry of MODELS.

    `name` is the network, an entry of MODELS. `class_cond`: whether it takes labels. The options named in
    `TRAINING_ONLY` have no effect on the outputs in eval mode, so that they may differ from those of
    pretrained weights. The key `preset` gives the options of a published shape; other keys change it. Of the
    options in `EITHER` a given one replaces those of the preset.

    `low_res` is the size of a low-resolution image that a network of `TAKES_IMAGE` enlarges (ADM 2105.05233,
    SR3 2104.07636), a side or [height, width]: the image's divided by a whole number. In training it is
    the mean over blocks of the image, with noise of a standard deviation between 0 and `cond_noise`, in units
    of [−1, 1], that the network embeds (Ho et al. 2021, 2106.15282); 0: no noise.
    """

    CHOSEN_BY = "name"
    ENTRIES = MODELS
    TRAINING_ONLY: ClassVar[frozenset[str]] = frozenset()
    EITHER: ClassVar[frozenset[str]] = frozenset()
    TAKES_IMAGE: ClassVar[bool] = False

    name: Annotated[str, AfterValidator(partial(check_name, registry=MODELS))] = "unet"
    class_cond: bool = True
    low_res: ImageSize | None = Field(default=None, exclude_if=operator.not_)
    cond_noise: Annotated[float, Field(ge=0, le=MAX_COND_NOISE, exclude_if=operator.not_), NotBool] = 0.0

    @model_validator(mode="after")
    def _check_low_res(self) -> Self:
        if self.low_res is not None and not self.TAKES_IMAGE:
            raise ValueError(f"low_res: a {self.name} takes no image: leave it out")
        if self.cond_noise and self.low_res is None:
            raise ValueError(
                f"cond_noise {self.cond_noise:g} is noise on a low-resolution image: set low_res"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        presets = cls.ALSO.get("preset")
        if presets is None or not isinstance(values, dict) or "preset" not in values:
            return values
        given = dict(values)
        name = given.pop("preset")
        if not is_entry(name, presets):
            near = nearest(str(name), presets)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"preset: allowed are {', '.join(presets)} (got {brief(name)}{hint})")
        replaced = cls.EITHER if cls.EITHER & given.keys() else frozenset()
        return {**{key: value for key, value in presets[name].model.items() if key not in replaced}, **given}

    def check_image_size(self, size: Size) -> None:
        """Raise ValueError if the network, or its low-resolution image, does not fit images of this size."""
        self.check_size(size)
        if self.low_res is None:
            return
        (factor, rest), *others = map(divmod, size, height_and_width(self.low_res))
        if rest or factor < 2 or others != [(factor, 0)]:
            found = f"{format_size(self.low_res)} does not give image_size {format_size(size)}"
            raise ValueError(f"low_res: {found} by a whole factor of at least 2: give a divisor")

    def check_size(self, size: Size) -> None:
        """Raise ValueError if the network cannot be built for images of this height and width in pixels."""

    def least_parameters(self) -> int:
        """Return a lower bound of the parameters in closed form, so that a huge network is not built."""
        return 0


class NetworkSpec(ModelConfig):
    """A ModelConfig with what the data decides: all that is needed to build the network.

    `num_classes` 0 means unconditional. `null_class` adds the "no label" row that classifier-free guidance
    trains; its index is `num_classes`.
    """

    OF_ENTRY = "spec"

    image_size: ImageSize
    in_channels: Annotated[int, Field(ge=1, le=4), NotBool]
    out_channels: Annotated[int, Field(ge=1, le=MAX_CLASSES), NotBool]
    num_classes: Annotated[int, Field(ge=0, le=MAX_CLASSES), NotBool] = 0
    null_class: bool = False

    @model_validator(mode="after")
    def _size_and_classes_fit(self) -> Self:
        self.check_image_size(self.size)
        if self.null_class and not self.num_classes:
            raise ValueError("null_class needs classes (num_classes > 0)")
        return self

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        return height_and_width(self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return self.in_channels, *self.size

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of an image in a store."""
        return *self.size, self.in_channels

    @property
    def low_res_size(self) -> Size | None:
        """Height and width of the low-resolution images that the network enlarges, if it does."""
        return None if self.low_res is None else height_and_width(self.low_res)

    @property
    def input_channels(self) -> int:
        """The channels that the first layer receives: the image's, and those of an enlarged one."""
        return self.in_channels * (1 if self.low_res is None else 2)

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives 2C channels: what it predicts, then v (iDDPM eq. 15)."""
        return self.out_channels == 2 * self.in_channels


class ConditionedSpec(NetworkSpec):
    """The spec of a `ConditionedNetwork` (diffusion/model/layers.py).

    `augmented`: it has a layer for the transform of a training image. Without that input, as in sampling, the
    image was not transformed. A file of a network without such a layer omits the field.
    """

    augmented: bool = Field(default=False, exclude_if=operator.not_)
