"""The network's operations that a device does faster in another way: each a formula in torch's own words.

Here alone it is decided who computes: a CPU by a faster equal (`cpu_kernels`) where there is one, all other
devices by the formula. It keeps a map's channels-last layout wherever torch's own operation does. Where
that does not, a GPU has an equal (`channels_last_kernels`) that does; a compiled network needs none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model import channels_last_kernels as laid
from diffusion.model import cpu_kernels as cpu


def on_cpu(x: Tensor) -> bool:
    """Whether `x` is computed by the CPU's equals of the formulas."""
    return x.device.type == "cpu"


def is_channels_last(x: Tensor) -> bool:
    """Whether each pixel's channels lie side by side, and not each channel's pixels; False where both do."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def stays_laid(x: Tensor) -> bool:
    """Return whether `x` is channels last, needs no gradient, and torch's group norm would copy it."""
    if on_cpu(x) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return is_channels_last(x)


def downsample(x: Tensor) -> Tensor:
    """The mean of each 2×2 pixels: (B, C, H, W) with even H and W → (B, C, H/2, W/2)."""
    if on_cpu(x):
        return cpu.downsample(x)
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Each pixel repeated to 2×2: (B, C, H, W) → (B, C, 2H, 2W)."""
    if on_cpu(x) and not is_channels_last(x):
        return cpu.upsample(x)
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsampled_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv`, 3×3 with padding 1, of upsampled `x`: (B, C, H, W) → (B, C_out, 2H, 2W)."""
    if on_cpu(x):
        return cpu.upsampled_conv(conv, x)
    return conv(upsample(x))  # type: ignore[no-any-return]


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """(x − μ)/√(σ² + ε)·weight + bias, μ and σ² of each image's groups of channels (1803.08494, sec. 3).

    (B, C, H, W) → the same shape. A group may be a single number, which torch's module refuses of one image.
    """
    if stays_laid(x):
        return laid.group_norm(norm, x)
    if on_cpu(x):
        x = cpu.norm_layout(x)
    return torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def scaled_group_norm(norm: nn.GroupNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift, scale and shift (B, C): (B, C, H, W) → the same shape."""
    if on_cpu(x):
        x = cpu.norm_layout(x)
        if not is_channels_last(x):
            return cpu.scaled_group_norm(norm, x, scale, shift)
    if stays_laid(x):
        return laid.scaled_group_norm(norm, x, scale, shift)
    return torch.addcmul(shift[..., None, None], group_norm(norm, x), 1 + scale[..., None, None])


def attention(qkv: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v (1706.03762, eq. 1): q, k and v (B, 3, heads, pixels, d) → (B, heads, pixels, d)."""
    if on_cpu(qkv):
        return cpu.attention(qkv)
    # The fused kernels need each pixel's channels side by side, as they are when the map was channels-last.
    q, k, v = (qkv if qkv.stride(-1) == 1 else qkv.contiguous()).unbind(1)
    return F.scaled_dot_product_attention(q, k, v)
