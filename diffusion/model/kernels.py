"""The network's operations that a CPU computes faster in another way, equal except for rounding.

All other devices compute the formula. Each operation keeps a map's channels-last layout where torch's own
operation does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PIXELS_OF_FORMULA = 256  # up to which attention by formula is faster in bfloat16 on a CPU
MIN_CHANNELS_LAST_PIXELS = 1024  # from which a CPU normalises channels-last maps as fast as contiguous ones


def on_cpu(x: Tensor) -> bool:
    """Return whether `x` is computed in the CPU's way."""
    return x.device.type == "cpu"


def is_channels_last(x: Tensor) -> bool:
    """Return whether each pixel's channels are adjacent, and not each channel's pixels; False if both are."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def downsample(x: Tensor) -> Tensor:
    """Average 2×2 pixels: (B, C, H, W) → (B, C, H/2, W/2); by slices on a CPU, 2 to 10 times faster."""
    if not on_cpu(x):
        return F.avg_pool2d(x, 2)
    rows = x[:, :, ::2] + x[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def upsample(x: Tensor) -> Tensor:
    """Repeat pixels: (B, C, H, W) → (B, C, 2H, 2W); by stacks on a CPU, two to ten times faster."""
    if not on_cpu(x) or is_channels_last(x):
        return F.interpolate(x, scale_factor=2, mode="nearest")
    wide = torch.stack((x, x), dim=-1).flatten(-2)
    return torch.stack((wide, wide), dim=3).flatten(2, 3)


def upsampled_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply `conv`, 3×3 with padding 1, to upsampled `x`: (B, C, H, W) → (B, C_out, 2H, 2W).

    On a CPU as one transposed convolution of `x` with 4/9 of the products. Of the nine taps those on
    copies of one pixel are added beforehand: a 4×4 kernel, stride 2.
    """
    if not on_cpu(x):
        return conv(upsample(x))  # type: ignore[no-any-return]
    weight = _at_least_float32(conv.weight)  # sums are rounded once, also with bfloat16 weights
    wide = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
    kernel = kernel.flip(2, 3).transpose(0, 1).to(x.dtype)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """(x − μ)/√(σ² + ε)·weight + bias, μ and σ² of each image's groups of channels (1803.08494, sec. 3).

    (B, C, H, W) → the same shape. A group may be a single number, which torch's module refuses of one image.
    """
    return torch.group_norm(_norm_layout(x), norm.num_groups, norm.weight, norm.bias, norm.eps)


def scaled_group_norm(norm: nn.GroupNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift, scale and shift (B, C): (B, C, H, W) → the same shape.

    A contiguous map on a CPU in one pass: with the batch along the channels, every image has its own weight
    and bias of the norm.
    """
    x = _norm_layout(x)
    if not on_cpu(x) or is_channels_last(x):
        return torch.addcmul(shift[..., None, None], group_norm(norm, x), 1 + scale[..., None, None])
    scale, shift = _at_least_float32(scale), _at_least_float32(shift)
    weight = norm.weight * (1 + scale)
    bias = torch.addcmul(shift, norm.bias, 1 + scale)
    batch, channels = x.shape[:2]
    one = x.reshape(1, batch * channels, *x.shape[2:])
    groups = batch * norm.num_groups
    return torch.group_norm(one, groups, weight.flatten(), bias.flatten(), norm.eps).reshape(x.shape)


def attention(qkv: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v (1706.03762, eq. 1): q, k and v (B, 3, heads, pixels, d) → (B, heads, pixels, d).

    For few pixels in bfloat16 on a CPU by the plain formula: torch's fused backward pass has a fixed cost for
    each head there, of up to ten times the work. The fused kernels need each pixel's channels adjacent.
    """
    if on_cpu(qkv):
        q, k, v = qkv.contiguous().unbind(1)  # without the copy the fused kernels take twice the time
        if q.dtype == torch.bfloat16 and q.shape[-2] <= MAX_PIXELS_OF_FORMULA:
            return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1) @ v
    else:
        q, k, v = (qkv if qkv.stride(-1) == 1 else qkv.contiguous()).unbind(1)
    return F.scaled_dot_product_attention(q, k, v)


def _norm_layout(x: Tensor) -> Tensor:
    """Return `x` as a CPU's group norm is fast: channels last, fewer pixels take 8 to 28 times as long."""
    few = x.shape[-2] * x.shape[-1] < MIN_CHANNELS_LAST_PIXELS
    return x.contiguous() if few and on_cpu(x) else x


def _at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is where it is more exact."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
