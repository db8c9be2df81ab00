"""The shape of EDM2's U-Net: its section of params.yaml, and with what the data decides, a whole network."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from diffusion.images.image_size import Size
from diffusion.model.network_registry import ModelConfig, NetworkSpec
from diffusion.model.unet_config import MAX_BLOCKS, MAX_LEVELS, MAX_MULT, ChannelCount
from diffusion.system.section import NotBool, Probability, Side, Unique


class EDM2Config(ModelConfig):
    """EDM2's shape (Karras et al. 2023, 2312.02696, table 6): layers that preserve magnitudes, and no norms.

    `channels` is the width that `channel_mult` multiplies; each level is half the size of the one above it.
    `num_res_blocks` is the number of blocks of a level on the way down. `attention_resolutions` lists the
    feature-map sizes, in pixels, that get self-attention, of `head_channels` channels a head; of maps that
    are not square the shorter side. `dropout` is the share of features that training drops.
    `gradient_checkpointing` computes features again in the backward pass instead of keeping them.
    """

    TRAINING_ONLY = frozenset({"dropout", "gradient_checkpointing"})

    channels: ChannelCount
    channel_mult: tuple[Annotated[int, Field(gt=0, le=MAX_MULT), NotBool], ...] = Field(
        default=(1, 2, 3, 4), min_length=1, max_length=MAX_LEVELS
    )
    num_res_blocks: Annotated[int, Field(gt=0, le=MAX_BLOCKS), NotBool] = 3
    attention_resolutions: Annotated[tuple[Side, ...], Field(max_length=MAX_LEVELS), Unique] = ()
    head_channels: ChannelCount = 64
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False

    @property
    def widths(self) -> list[int]:
        """The channels of the levels."""
        return [mult * self.channels for mult in self.channel_mult]

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if indivisible := [width for width in self.widths if width % self.head_channels]:
            raise ValueError(f"head_channels: {self.head_channels} does not divide {indivisible[0]} channels")
        if (blocks := self.num_res_blocks * len(self.channel_mult)) > MAX_BLOCKS:
            raise ValueError(f"num_res_blocks: {blocks} blocks in all levels are more than {MAX_BLOCKS}")
        return self

    def check_size(self, size: Size) -> None:
        """Raise ValueError if the levels or the attention do not fit images of this size."""
        levels = len(self.channel_mult)
        for side in size:
            if side % (stride := 2 ** (levels - 1)):
                why = f"channel_mult has {levels} levels"
                raise ValueError(f"image_size {side} must be divisible by {stride}: {why}")
        sides = [min(size) >> level for level in range(levels)]
        if missing := sorted(set(self.attention_resolutions) - set(sides)):
            raise ValueError(f"attention_resolutions: feature maps have {sides} pixels, not {missing}")

    def has_attention(self, size: Size) -> bool:
        """Return whether the feature maps of this size get self-attention."""
        return min(size) in self.attention_resolutions

    def least_parameters(self) -> int:
        """Return the number of weights of the two convolutions in each block."""
        return (2 * self.num_res_blocks + 1) * sum(18 * width * width for width in self.widths)


class EDM2Spec(EDM2Config, NetworkSpec):
    """An EDM2Config with what the data decides, which is also what a model file stores."""
