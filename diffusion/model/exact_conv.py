"""The convolutions of a network that stay exact where the others are rounded: its first and its last."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class ExactConv2d(nn.Conv2d):
    """A convolution in its weights' own precision, under autocast and in a rounded copy too.

    The first convolution takes x_t. Its noise at small t is as small as bfloat16's rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H', W'), in the weights' type."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
