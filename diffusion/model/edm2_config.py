"""The shape of EDM2's U-Net: its section of params.yaml, and with what the data decides, a whole network."""

from typing import Self

from pydantic import model_validator

from diffusion.model.network_registry import NetworkSpec
from diffusion.model.unet_config import ChannelCount, LevelsConfig
from diffusion.system.section import Probability


class EDM2Config(LevelsConfig):
    """EDM2's shape (Karras et al. 2023, 2312.02696, table 6): layers that preserve magnitudes, and no norms.

    `channels` is the width that `channel_mult` multiplies, [1, 2, 3, 4] in the paper; each level is half the
    size of the one above it. `num_res_blocks` is the number of blocks of a level on the way down, 3 in the
    paper. `attention_resolutions` lists the feature-map sizes, in pixels, that get self-attention, of
    `head_channels` channels a head; of maps that are not square the shorter side. `dropout` is the share of
    features that training drops. `gradient_checkpointing` computes features again in the backward pass
    instead of keeping them.
    """

    TRAINING_ONLY = frozenset({"dropout", "gradient_checkpointing"})

    head_channels: ChannelCount = 64
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if indivisible := [width for width in self.widths if width % self.head_channels]:
            raise ValueError(f"head_channels: {self.head_channels} does not divide {indivisible[0]} channels")
        return self

    def least_parameters(self) -> int:
        """Return the number of weights of the two convolutions in each block."""
        return (2 * self.num_res_blocks + 1) * sum(18 * width * width for width in self.widths)


class EDM2Spec(EDM2Config, NetworkSpec):
    """An EDM2Config with what the data decides, which is also what a model file stores."""
