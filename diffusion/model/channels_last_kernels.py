"""What a GPU computes of a channels-last map instead of the formulas in `kernels`, which would copy it.

torch's group norm makes such a map contiguous, and the next convolution turns it back. Forward that reads and
writes 24 bytes a number in float32, and this 12. Backward plain operations move more than they save: where
gradients are needed the formula is used.
"""

import torch
from torch import Tensor, nn

from diffusion.model.cpu_kernels import at_least_float32


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`kernels.group_norm`, which has the same numbers but for rounding; it stays channels-last."""
    return _normalised(norm, x, at_least_float32(norm.weight), at_least_float32(norm.bias))


def scaled_group_norm(norm: nn.GroupNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`kernels.scaled_group_norm` in as many passes as the norm alone takes."""
    more = 1 + at_least_float32(scale)
    weight, bias = norm.weight * more, torch.addcmul(at_least_float32(shift), norm.bias, more)
    return _normalised(norm, x, weight, bias)


def _normalised(norm: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x·a + b with a = weight/√(σ² + ε) and b = bias − μ·a; weight and bias are (C,), or (B, C).

    In float32 as torch's under autocast, where the result is, too.
    """
    batch, channels, height, width = x.shape
    groups = (norm.num_groups, channels // norm.num_groups)
    laid = at_least_float32(x).permute(0, 2, 3, 1)
    pixels = laid.view(batch, height, width, *groups)  # a view
    variance, mean = torch.var_mean(pixels, dim=(1, 2, 4), correction=0)
    factor = weight.view(-1, *groups) * (variance + norm.eps).rsqrt()[..., None]
    offset = bias.view(-1, *groups) - mean[..., None] * factor
    found = torch.addcmul(offset[:, None, None], pixels, factor[:, None, None])
    found = found.flatten(-2).permute(0, 3, 1, 2)
    return found if _autocast_on(x.device.type) else found.to(x.dtype)


def _autocast_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
