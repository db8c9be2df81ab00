"""The levels of a U-Net: feature maps of half the size of those above, with blocks and attention."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from diffusion.images.image_size import Size
from diffusion.model.network_registry import ModelConfig
from diffusion.system.section import NotBool, Side, Unique

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
