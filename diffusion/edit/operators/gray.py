"""Colours lost: y is the luma of an image, 0.299·R + 0.587·G + 0.114·B (ITU-R BT.601), as Pillow's mode L."""

import torch
from torch import Tensor

from diffusion.edit.operator import LinearOperator, Shape
from diffusion.system.errors import UsageError
from diffusion.system.section import NoOptions

LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


class Gray(LinearOperator):
    """The luma; the singular value is the length of its weights."""

    has_orthogonal_rows = True

    def __init__(self, image_shape: Shape) -> None:
        channels, height, width = image_shape
        if channels != len(LUMA):
            raise UsageError(f"gray needs images with 3 channels (got {channels}): leave it out")
        self.text, self.gain = "gray", float(LUMA.norm())
        self.image_shape, self.shape = image_shape, (1, height, width)

    def apply(self, x: Tensor) -> Tensor:
        """Return the luma."""
        return (x * _weights(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the luma times each channel's weight."""
        return y * _weights(y)


def _weights(like: Tensor) -> Tensor:
    return LUMA.to(like.dtype).to(like.device).reshape(1, -1, 1, 1)


def build(options: NoOptions, image_shape: Shape) -> Gray:
    """Weight the colours."""
    return Gray(image_shape)
