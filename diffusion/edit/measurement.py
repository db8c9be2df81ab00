"""What an edit is given: the measurements y = A·x_0 + σ_y·n of images, or the pictures themselves."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.edit.operator import LinearOperator, Shape
from diffusion.edit.operators.mask import Mask
from diffusion.edit.operators.product import product
from diffusion.protocol.edits import OPERATORS, parse_operator
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference


@dataclass(frozen=True, eq=False)
class Measurement:
    """`y` (B, *operator.shape) with noise of deviation `sigma`; without an operator pictures (B, C, H, W)."""

    operator: LinearOperator | None
    y: Tensor
    sigma: float = 0.0

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: slice | Tensor) -> "Measurement":
        """Return the measurements of some of the images."""
        return replace(self, y=self.y[index])

    def to(self, device: torch.device) -> "Measurement":
        """Return the same on a device."""
        return replace(self, y=self.y.to(device))

    @property
    def image_shape(self) -> Shape:
        """The shape of an edited image."""
        if self.operator is not None:
            return self.operator.image_shape
        _, channels, height, width = self.y.shape
        return channels, height, width


def build_operator(text: str, image_shape: Shape, kept: Tensor | None = None) -> LinearOperator:
    """Return the operator of a text form for images of a shape; `kept` (H, W) is a mask that is a picture.

    UsageError if it does not fit the shape, and for a product without a known pseudo-inverse.
    """
    try:
        factors = parse_operator(text)
    except ValueError as error:
        raise UsageError(f"operator {text:.120}: {error}") from None
    whole: LinearOperator | None = None
    for name, values in factors:
        entry, shape = OPERATORS[name], image_shape if whole is None else whole.shape
        factor: LinearOperator
        if name == "mask" and kept is not None:
            factor = Mask(kept, shape)
        else:
            factor = load_reference(entry.builder)(entry.parse(values), shape)
        whole = factor if whole is None else product(whole, factor)
    assert whole is not None, "a text has at least one factor"
    return whole
