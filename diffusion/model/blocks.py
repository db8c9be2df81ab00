"""The blocks of the ADM U-Net (2105.05233, sec. 3): residual and ConvNeXt blocks, resampling, attention.

Feature maps are (B, C, H, W). `kernels` has the operations that a CPU computes faster in another way.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model import kernels
from diffusion.model.layers import Dropout, zero
from diffusion.model.unet_config import UNetSpec

Resampling = Literal["none", "up", "down"]


class GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, or of as many as divide both when there are fewer or odd channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return kernels.group_norm(self, x)


def set_norms(network: nn.Module, eps: float, group_channels: int) -> None:
    """Set what the network's group norms add to a variance, and the least number of channels of a group."""
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.eps = eps
            while module.num_groups > 1 and module.num_channels < group_channels * module.num_groups:
                module.num_groups //= 2


def resample(x: Tensor, how: Resampling) -> Tensor:
    """Halve by averaging or double by repeating the last two axes; `none` leaves them."""
    if how == "down":
        return kernels.downsample(x)
    if how == "up":
        return kernels.upsample(x)
    return x


class Conditioning(nn.Module):
    """A group norm conditioned on the embedding of time and class, by a scale and a shift of each channel.

    `adagn`: norm(h)·(1 + scale) + shift (AdaGN, ADM sec. 3.1). `additive`: norm(h + shift), as DDPM has it.
    """

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.adaptive = spec.embedding == "adagn"
        self.norm = GroupNorm(channels)
        self.project = nn.Linear(4 * spec.channels, 2 * channels if self.adaptive else channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) and the activated (B, E) embedding → (B, C, H, W)."""
        projected = self.project(embedding)
        if not self.adaptive:
            return self.norm(h + projected[:, :, None, None])  # type: ignore[no-any-return]
        scale, shift = projected.chunk(2, dim=1)
        return kernels.scaled_group_norm(self.norm, h, scale, shift)


class ResBlock(nn.Module):
    """BigGAN's residual block as ADM uses it (sec. 3); its last convolution starts as zero.

    skip(resample(x)) + conv(dropout(SiLU(condition(conv(resample(SiLU(norm(x)))))))).
    """

    def __init__(
        self, spec: UNetSpec, channels: int, out_channels: int, resampling: Resampling = "none"
    ) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.norm_in = GroupNorm(channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.condition = Conditioning(spec, out_channels)
        self.dropout = Dropout(spec.dropout)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H', W'), H' halved or doubled with the resampling."""
        h = F.silu(self.norm_in(x))
        if self.resampling == "up":
            h = kernels.upsampled_conv(self.conv_in, h)
        else:
            h = self.conv_in(resample(h, self.resampling))
        h = F.silu(self.condition(h, embedding))
        return self.skip(resample(x, self.resampling)) + self.conv_out(self.dropout(h))  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block (Liu et al. 2022, 2201.03545) with ResBlock's interface and conditioning.

    7×7 depthwise conv, conditioned norm, 1×1 conv to 4C, GELU, zero 1×1 conv.
    """

    def __init__(
        self, spec: UNetSpec, channels: int, out_channels: int, resampling: Resampling = "none"
    ) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.condition = Conditioning(spec, channels)
        self.expand = nn.Conv2d(channels, 4 * out_channels, 1)
        self.dropout = Dropout(spec.dropout)
        self.contract = zero(nn.Conv2d(4 * out_channels, out_channels, 1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H', W'), H' halved or doubled with the resampling."""
        x = resample(x, self.resampling)
        h = F.gelu(self.expand(self.condition(self.depthwise(x), embedding)))
        return self.skip(x) + self.contract(self.dropout(h))  # type: ignore[no-any-return]


BLOCKS: dict[str, type[ResBlock] | type[ConvNeXtBlock]] = {"resnet": ResBlock, "convnext": ConvNeXtBlock}


class Attention(nn.Module):
    """Multi-head self-attention over pixels (ADM sec. 3), the non-local block; its output starts as zero."""

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.heads = spec.heads_of(channels)
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; the embedding is not used, so that all blocks are called alike."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        h = kernels.attention(qkv.transpose(-1, -2)).transpose(-1, -2)
        return x + self.project(h.reshape(x.shape))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halving by a 3×3 convolution of stride 2 (DDPM), padded with zeros on both sides, or after."""

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.after = spec.downsample_padding == "after"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.after else 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2)."""
        if self.after:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Plain doubling: repeated pixels, then a 3×3 convolution (DDPM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return kernels.upsampled_conv(self.conv, x)
