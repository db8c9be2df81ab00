"""Conversion between pixels and model values: uint8 ↔ [−1, 1], NHWC ↔ NCHW. No other module converts."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model(images: Tensor) -> Tensor:
    """Convert uint8 (B, C, H, W) to float32 in [−1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Convert model values (B, C, H, W) to uint8, clamped and rounded: the inverse of `to_model`."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_nhwc(x: Tensor) -> NDArray[np.uint8]:
    """Convert uint8 (B, C, H, W) to a contiguous NHWC array on the CPU."""
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).cpu().numpy())


def to_nchw(images: NDArray[np.uint8]) -> Tensor:
    """Copy uint8 NHWC to a contiguous (B, C, H, W) tensor."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
