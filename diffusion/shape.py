"""The shape of a network: the model section of params.yaml, and with what the data decides, a whole one."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from diffusion.presets import PRESETS
from diffusion.section import Distinct, PositiveInt, Probability, Section


class ModelConfig(Section):
    """The ADM U-Net's shape (2105.05233, sec. 3 and table 12).

    `attention` lists the feature-map sizes, in pixels, that get self-attention. Heads come either from
    `head_channels` (channels a head) or from `heads` (their number). The network sees t·`time_scale`
    (iDDPM's code trains with 1000/T). The key `preset` stands for the shape of a published network; other
    keys beside it change it.
    """

    channels: PositiveInt
    channel_mult: tuple[PositiveInt, ...] = Field(min_length=1)
    num_res_blocks: PositiveInt = 2
    attention: Annotated[tuple[PositiveInt, ...], Distinct] = ()
    head_channels: PositiveInt | None = None
    heads: PositiveInt | None = None
    embedding: Literal["adagn", "additive"] = "adagn"
    resample: Literal["biggan", "plain"] = "biggan"
    block: Literal["resnet", "convnext"] = "resnet"
    dropout: Probability = 0.0
    class_cond: bool = True
    gradient_checkpointing: bool = False
    time_scale: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        given = dict(values)
        name = given.pop("preset")
        if name not in PRESETS:
            raise ValueError(f"preset: allowed are {', '.join(PRESETS)} (got {name!r})")
        shape = PRESETS[name].model
        if {"heads", "head_channels"} & given.keys():
            shape = {key: value for key, value in shape.items() if key not in ("heads", "head_channels")}
        return {**shape, **given}

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.head_channels is not None and self.heads is not None:
            raise ValueError("head_channels and heads exclude each other: give one of them")
        for mult in self.channel_mult:
            width = mult * self.channels
            if width % (self.head_channels or self.heads or 1):
                raise ValueError(
                    f"head_channels (or heads) must divide every level's channels, "
                    f"and {self.head_channels or self.heads} does not divide {width}"
                )
        return self

    @model_validator(mode="after")
    def _embedding_is_seen(self) -> Self:
        widths = [mult * self.channels for mult in self.channel_mult]
        if self.embedding == "additive" and any(32 % width == 0 for width in widths):
            raise ValueError(
                f"embedding additive is lost in a norm with one channel a group, as at levels of {widths} "
                "channels: use adagn, or more than 32 channels"
            )
        return self


class UNetSpec(ModelConfig):
    """A ModelConfig with what the data decides: all that is needed to build the network.

    `num_classes` 0 means unconditional. `null_class` adds the "no label" row that classifier-free guidance
    trains; its index is `num_classes`.
    """

    image_size: PositiveInt
    in_channels: Annotated[int, Field(ge=1, le=4)]
    out_channels: PositiveInt
    num_classes: Annotated[int, Field(ge=0)] = 0
    null_class: bool = False

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes = level_sizes(self.image_size, len(self.channel_mult))
        missing = sorted(set(self.attention) - set(sizes))
        if missing:
            raise ValueError(
                f"attention: the network has feature maps of {sizes} pixels, so {missing} cannot be used"
            )
        if self.null_class and not self.num_classes:
            raise ValueError("null_class needs classes (num_classes > 0)")
        return self

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives 2C channels: epsilon, then v (iDDPM eq. 15)."""
        return self.out_channels == 2 * self.in_channels


def level_sizes(image_size: int, levels: int) -> list[int]:
    """The feature-map sizes in pixels, from the image down; ValueError unless each halving is exact."""
    stride = 2 ** (levels - 1)
    if image_size % stride:
        raise ValueError(
            f"image_size {image_size} must be divisible by {stride}: "
            f"channel_mult has {levels} levels, each half the size of the one above"
        )
    return [image_size >> level for level in range(levels)]
