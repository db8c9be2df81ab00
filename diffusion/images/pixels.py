"""The one place where pixels and model values meet: uint8 ↔ [−1, 1], NHWC ↔ NCHW."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) → float32 in [−1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Model values (B, C, H, W) → uint8, clamped and rounded: `to_model`'s inverse."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_nhwc(x: Tensor) -> NDArray[np.uint8]:
    """uint8 (B, C, H, W) → a contiguous NHWC array on the CPU."""
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).cpu().numpy())


def to_nchw(images: NDArray[np.uint8]) -> Tensor:
    """uint8 NHWC → a contiguous (B, C, H, W) tensor of its own."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
