"""Pixels hidden by a mask: y has 0, mid-grey, in their place."""

import hashlib

import torch
from torch import Tensor

from diffusion.edit.operator import LinearOperator, Shape
from diffusion.images.image_size import format_pixels, format_size
from diffusion.protocol.edits import MaskOptions
from diffusion.system.errors import UsageError


class Mask(LinearOperator):
    """A·x keeps the pixels where `kept` (H, W) is True, in all channels; `box` is the text of a box."""

    def __init__(self, kept: Tensor, image_shape: Shape, box: str | None = None) -> None:
        if kept.shape != image_shape[1:]:
            found, wanted = format_pixels(kept.shape), format_size(image_shape[1:])
            raise UsageError(f"the mask has {found}, the images {wanted}: resize it")
        if not kept.any() or kept.all():
            found = "hides no pixel" if kept.all() else "hides every pixel"
            raise UsageError(f"the mask {found}: white, or transparent, are the pixels to fill")
        digest = hashlib.sha256(kept.cpu().numpy().tobytes()).hexdigest()
        self.text = f"mask:{box or digest[:16]}"
        self.image_shape = self.shape = image_shape
        self.kept = kept

    def apply(self, x: Tensor) -> Tensor:
        """Return x with 0 at hidden pixels."""
        return torch.where(self.kept.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: A is a projection."""
        return self.apply(y)


def build(options: MaskOptions, image_shape: Shape) -> Mask:
    """Hide a box of pixels."""
    _, height, width = image_shape
    if options.box is None:
        raise UsageError(
            "operator mask needs the hidden pixels: give mask:LEFT,TOP,RIGHT,BOTTOM or a picture"
        )
    left, top, right, bottom = map(int, options.box.split(","))
    pixels = format_pixels((height, width))
    if not (left < right <= width and top < bottom <= height):
        raise UsageError(f"mask:{options.box} is no box in {pixels}: give LEFT,TOP,RIGHT,BOTTOM")
    if (left, top, right, bottom) == (0, 0, width, height):
        raise UsageError(f"mask:{options.box} hides every pixel of {pixels}: give a smaller box")
    kept = torch.ones(height, width, dtype=torch.bool)
    kept[top:bottom, left:right] = False
    return Mask(kept, image_shape, options.box)
