"""What a CPU computes instead of the formulas in `kernels`, equal but for rounding, and why it is faster."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PIXELS_OF_FORMULA = 256  # up to which attention by formula is faster in bfloat16
MIN_CHANNELS_LAST_PIXELS = 1024  # from which torch normalises channels-last maps as fast as contiguous ones


def downsample(x: Tensor) -> Tensor:
    """`kernels.downsample` by slices: torch's pooling takes two to ten times as long."""
    rows = x[:, :, ::2] + x[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def upsample(x: Tensor) -> Tensor:
    """`kernels.upsample` by stacks, contiguous: torch's interpolation takes two to ten times as long."""
    wide = torch.stack((x, x), dim=-1).flatten(-2)
    return torch.stack((wide, wide), dim=3).flatten(2, 3)


def upsampled_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`kernels.upsampled_conv` as one transposed convolution of `x` with 4/9 of the products.

    Of the nine taps those that fall on copies of one pixel are added up beforehand: a 4×4 kernel, stride 2.
    """
    weight = at_least_float32(conv.weight)  # sums are rounded once, also with bfloat16 weights
    wide = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
    kernel = kernel.flip(2, 3).transpose(0, 1).to(x.dtype)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def norm_layout(x: Tensor) -> Tensor:
    """`x` as torch's group norm is fast with it: channels last, fewer pixels take 8 to 28 times as long."""
    return x if x.shape[-2] * x.shape[-1] >= MIN_CHANNELS_LAST_PIXELS else x.contiguous()


def scaled_group_norm(norm: nn.GroupNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`kernels.scaled_group_norm` of a contiguous map in one pass, scale and shift joined to the norm's own.

    With the batch laid along the channels every image has its own.
    """
    scale, shift = at_least_float32(scale), at_least_float32(shift)
    weight = norm.weight * (1 + scale)
    bias = torch.addcmul(shift, norm.bias, 1 + scale)
    batch, channels = x.shape[:2]
    one = x.reshape(1, batch * channels, *x.shape[2:])
    groups = batch * norm.num_groups
    return torch.group_norm(one, groups, weight.flatten(), bias.flatten(), norm.eps).reshape(x.shape)


def attention(qkv: Tensor) -> Tensor:
    """`kernels.attention`, for few pixels in bfloat16 by the plain formula.

    torch's fused backward pass has a fixed cost for each head there, of up to ten times the work. Without the
    copy that lays each pixel's channels side by side the fused kernels take twice the time.
    """
    q, k, v = qkv.contiguous().unbind(1)
    if q.dtype == torch.bfloat16 and q.shape[-2] <= MAX_PIXELS_OF_FORMULA:
        return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is more exact."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
