"""The shape of the U-Net: its section of params.yaml, and with what the data decides, a whole network."""

import operator
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffusion.images.image_size import Size
from diffusion.model.network_registry import ConditionedSpec, ModelConfig
from diffusion.model.presets import PRESETS
from diffusion.system.section import NotBool, Probability, Side, Unique

# Far beyond the published networks (256 channels × 4, 6 levels, 32 blocks on the way down), and so few blocks
# that one is built and looked at in seconds.
MAX_CHANNELS, MAX_MULT, MAX_LEVELS, MAX_BLOCKS = 16_384, 64, 8, 40
ChannelCount = Annotated[int, Field(gt=0, le=MAX_CHANNELS), NotBool]


class LevelsConfig(ModelConfig):
    """The levels.

    `channels` is the width that `channel_mult` multiplies. `channel_mult` has a factor for each level, of
    which each is half the size of the one above it. `num_res_blocks` is the number of blocks of a level on
    the way down. `attention_resolutions` lists the feature-map sizes, in pixels, that get self-attention; of
    maps that are not square the shorter side.
    """

    channels: ChannelCount
    channel_mult: tuple[Annotated[int, Field(gt=0, le=MAX_MULT), NotBool], ...] = Field(
        min_length=1, max_length=MAX_LEVELS
    )
    num_res_blocks: Annotated[int, Field(gt=0, le=MAX_BLOCKS), NotBool] = 2
    attention_resolutions: Annotated[tuple[Side, ...], Field(max_length=MAX_LEVELS), Unique] = ()

    @property
    def widths(self) -> list[int]:
        """The channels of the levels."""
        return [mult * self.channels for mult in self.channel_mult]

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if (blocks := self.num_res_blocks * len(self.channel_mult)) > MAX_BLOCKS:
            raise ValueError(f"num_res_blocks: {blocks} blocks in all levels are more than {MAX_BLOCKS}")
        return self

    def check_size(self, size: Size) -> None:
        """Raise ValueError if the levels or the attention do not fit images of this size."""
        sides = [min(of_level) for of_level in self.level_sizes(size)]
        if missing := sorted(set(self.attention_resolutions) - set(sides)):
            raise ValueError(f"attention_resolutions: feature maps have {sides} pixels, not {missing}")

    def level_sizes(self, size: Size, patch_size: int = 1) -> list[Size]:
        """Return the feature-map sizes of the levels in pixels; ValueError unless each division is exact.

        The first level has 1/`patch_size` of the image's sides.
        """
        levels = len(self.channel_mult)
        stride = patch_size * 2 ** (levels - 1)
        for side in size:
            if side % stride:
                patches = f", and patch_size is {patch_size}" if patch_size > 1 else ""
                why = f"channel_mult has {levels} levels{patches}"
                raise ValueError(f"image_size {side} must be divisible by {stride}: {why}")
        height, width = (side // patch_size for side in size)
        return [(height >> level, width >> level) for level in range(levels)]

    def has_attention(self, size: Size) -> bool:
        """Return whether the feature maps of this size get self-attention."""
        return min(size) in self.attention_resolutions


NORM_EPS = 1e-5
PIXEL_CHANNELS = 16


class UNetConfig(LevelsConfig):
    """The ADM U-Net's shape (2105.05233, sec. 3 and table 12).

    `channels` is the width that `channel_mult` multiplies. `channel_mult` has a factor for each level, of
    which each is half the size of the one above it. `num_res_blocks` is the number of blocks of a level on
    the way down. A `block` is resnet, or convnext (2201.03545). The `embedding` of time and class scales and
    shifts a block's norm (adagn), or is added before it as in DDPM (additive). `resample` halves and doubles
    within a residual block (biggan), or by a layer of its own (plain).

    A norm has 32 groups, or fewer so that each has at least `group_channels` channels: 1, or 4 as in EDM's
    code. A group of a single channel removes its mean and contrast.

    `attention_resolutions` lists the feature-map sizes, in pixels, that get self-attention; of maps that are
    not square the shorter side. Its heads come either from `head_channels` (channels a head) or from `heads`
    (their number). The network receives t·`time_scale` (iDDPM's code trains with 1000/T).
    With `patch_size` p > 1 the first level has 1/p of the image's sides: the first convolution has stride p,
    and the last layers return to full size, where `pixel_channels` features of the image itself join them.

    `dropout` is the share of features that training drops. `gradient_checkpointing` computes features again
    in the backward pass instead of keeping them.

    Three more fields are for networks from elsewhere, and a file that has the usual values leaves them out.
    `downsample_padding` after: a plain downsampling pads only on the right and below, as DDPM's code in
    TensorFlow did. `frequency_shift` 1: the last period of the sinusoids of t is 10,000·2π. `norm_eps` is
    added to a norm's variance.
    """

    ALSO = MappingProxyType({"preset": PRESETS})
    EITHER = frozenset({"heads", "head_channels"})
    TRAINING_ONLY = frozenset({"dropout", "gradient_checkpointing"})
    TAKES_IMAGE = True

    group_channels: ChannelCount = Field(default=1, exclude_if=(1).__eq__)
    head_channels: ChannelCount | None = None
    heads: ChannelCount | None = None
    embedding: Literal["adagn", "additive"] = "adagn"
    resample: Literal["biggan", "plain"] = "biggan"
    block: Literal["resnet", "convnext"] = "resnet"
    patch_size: Literal[1, 2, 4] = Field(default=1, exclude_if=(1).__eq__)
    pixel_channels: ChannelCount = Field(default=PIXEL_CHANNELS, exclude_if=PIXEL_CHANNELS.__eq__)
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False
    time_scale: Annotated[float, Field(gt=0, le=1000), NotBool] = 1.0
    downsample_padding: Literal["both", "after"] = Field(default="both", exclude_if="both".__eq__)
    frequency_shift: Annotated[int, Field(ge=0, le=1, exclude_if=operator.not_), NotBool] = 0
    norm_eps: Annotated[float, Field(gt=0, le=1, exclude_if=NORM_EPS.__eq__), NotBool] = NORM_EPS

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.head_channels is not None and self.heads is not None:
            raise ValueError("head_channels and heads exclude each other: give one of them")
        divisor = self.head_channels or self.heads or 1
        if indivisible := [width for width in self.widths if width % divisor]:
            raise ValueError(f"head_channels (or heads): {divisor} does not divide {indivisible[0]} channels")
        if self.downsample_padding != "both" and self.resample != "plain":
            raise ValueError("downsample_padding after is of resample plain: leave it out")
        if self.pixel_channels != PIXEL_CHANNELS and self.patch_size == 1:
            raise ValueError("pixel_channels are of a patch_size above 1: leave it out")
        alone = self.group_channels == 1 and any(32 % width == 0 for width in self.widths)
        if self.embedding == "additive" and alone:
            raise ValueError("embedding additive is lost in a norm with one channel a group: use adagn")
        return self

    def level_sizes(self, size: Size, patch_size: int | None = None) -> list[Size]:
        """Return the feature-map sizes of the levels, by default with the network's patches."""
        return super().level_sizes(size, patch_size or self.patch_size)

    def heads_of(self, channels: int) -> int:
        """Return the number of heads of self-attention over this many channels."""
        return channels // self.head_channels if self.head_channels else self.heads or 1

    def least_parameters(self) -> int:
        """Return the number of weights of two layers in each block: last convolution and conditioning."""
        kernel = 9 if self.block == "resnet" else 4  # 3×3, or 1×1 from four times the channels
        blocks = 2 * self.num_res_blocks + 1  # down and up
        return blocks * sum(kernel * width * width + 4 * self.channels * width for width in self.widths)


class UNetSpec(UNetConfig, ConditionedSpec):
    """A UNetConfig with what the data decides, which is also what a model file stores."""
