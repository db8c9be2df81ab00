"""The shape of the transformer DiT: its section of params.yaml, and with what the data decides, a network."""

from types import MappingProxyType
from typing import Annotated, Self

from pydantic import Field, model_validator

from diffusion.images.image_size import Size
from diffusion.model.network_registry import ConditionedSpec, ModelConfig
from diffusion.model.presets import DIT_SIZES
from diffusion.system.section import NotBool, PositiveInt, Probability, Side

MAX_WIDTH, MAX_DEPTH, MAX_RATIO = 16_384, 100, 64  # far beyond DiT-XL: 1152 wide, 28 deep, ratio 4


class DiTConfig(ModelConfig):
    """The shape of a DiT (Peebles & Xie 2023, 2212.09748, sec. 3.2 and table 1).

    An image is cut into patches of `patch_size`² pixels, each a token of `width` numbers. `depth` blocks
    follow, with `heads` heads of attention and a hidden layer of `mlp_ratio`·width.

    `dropout` is the share of hidden features that training drops; the paper drops none.
    `gradient_checkpointing` computes features again in the backward pass instead of keeping them.
    """

    ALSO = MappingProxyType({"preset": DIT_SIZES})
    TRAINING_ONLY = frozenset({"dropout", "gradient_checkpointing"})
    TAKES_IMAGE = True

    patch_size: Side = 2
    width: Annotated[PositiveInt, Field(le=MAX_WIDTH)] = 384
    depth: Annotated[PositiveInt, Field(le=MAX_DEPTH)] = 12
    heads: Annotated[PositiveInt, Field(le=MAX_WIDTH)] = 6
    mlp_ratio: Annotated[float, Field(ge=1, le=MAX_RATIO), NotBool] = 4.0
    dropout: Probability = 0.0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _width_is_divisible(self) -> Self:
        if self.width % 4:
            raise ValueError(f"width must be divisible by 4, for the positions (got {self.width})")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, and {self.heads} does not divide {self.width}")
        return self

    def check_size(self, size: Size) -> None:
        """Raise ValueError if an image of this size cannot be divided into patches."""
        for side in size:
            if side % self.patch_size:
                raise ValueError(f"patch_size {self.patch_size} must divide image_size {side}")

    def least_parameters(self) -> int:
        """Return the number of weights in the blocks' matrices: attention, both hidden layers, modulation."""
        return self.depth * self.width * (10 * self.width + 2 * int(self.mlp_ratio * self.width))


class DiTSpec(DiTConfig, ConditionedSpec):
    """A DiTConfig with what the data decides, which is also what a model file stores."""
