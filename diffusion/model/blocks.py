"""The blocks of the ADM U-Net (2105.05233, sec. 3): residual and ConvNeXt blocks, resampling, attention.

Feature maps are (B, C, H, W); what a device computes in another way than the papers write it is in `kernels`.
"""

import math
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.model import kernels

Resampling = Literal["none", "up", "down"]


def zero(module: nn.Module) -> nn.Module:
    """Zero all parameters of a module, so that a residual block that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, or of as many as divide both when there are fewer or odd channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return kernels.group_norm(self, x)


def set_norm_eps(network: nn.Module, eps: float) -> None:
    """Give every group norm of the network what it adds to a variance."""
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.eps = eps


def timestep_embedding(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """(B,) timesteps → (B, width) sinusoids of periods 2π … 10,000·2π (DDPM app. B, after Vaswani et al.).

    The last one has that period with `shift` 1, as in DDPM's code; without it the next one would.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - shift))
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, width % 2))


def resample(x: Tensor, how: Resampling) -> Tensor:
    """Halve by averaging or double by repeating the last two axes; `none` leaves them."""
    if how == "down":
        return kernels.downsample(x)
    if how == "up":
        return kernels.upsample(x)
    return x


def resampled_conv(conv: nn.Conv2d, x: Tensor, how: Resampling) -> Tensor:
    """`conv`, 3×3 with padding 1, of resampled `x`."""
    if how == "up":
        return kernels.upsampled_conv(conv, x)
    return conv(resample(x, how))  # type: ignore[no-any-return]


class Conditioning(nn.Module):
    """Lets the embedding of time and class into the norm, projected to a scale and a shift of each channel.

    `adagn`: norm(h)·(1 + scale) + shift (AdaGN, ADM sec. 3.1). `additive`: norm(h + shift), as DDPM has it.
    """

    def __init__(self, channels: int, embedding_width: int, kind: str) -> None:
        super().__init__()
        self.adaptive = kind == "adagn"
        self.norm = GroupNorm(channels)
        self.project = nn.Linear(embedding_width, 2 * channels if self.adaptive else channels)

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
        self,
        channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        embedding: str = "adagn",
        dropout: float = 0.0,
        resampling: Resampling = "none",
    ) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.norm_in = GroupNorm(channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.condition = Conditioning(out_channels, embedding_width, embedding)
        self.dropout = Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H', W'), H' halved or doubled with the resampling."""
        h = F.silu(self.norm_in(x))
        h = resampled_conv(self.conv_in, h, self.resampling)
        h = F.silu(self.condition(h, embedding))
        return self.skip(resample(x, self.resampling)) + self.conv_out(self.dropout(h))  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block (Liu et al. 2022, 2201.03545) with ResBlock's interface and conditioning.

    7×7 depthwise conv, conditioned norm, 1×1 conv to 4C, GELU, zero 1×1 conv.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        embedding: str = "adagn",
        dropout: float = 0.0,
        resampling: Resampling = "none",
    ) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.condition = Conditioning(channels, embedding_width, embedding)
        self.expand = nn.Conv2d(channels, 4 * out_channels, 1)
        self.dropout = Dropout(dropout)
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

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
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
    """Plain halving: a 3×3 convolution with stride 2 (DDPM).

    `padding` both: a row of zeros on all sides; after: on the right and below alone.
    """

    def __init__(self, channels: int, padding: str = "both") -> None:
        super().__init__()
        self.after = padding == "after"
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


class Stage(nn.ModuleList):
    """Blocks in sequence, each with the embedding; optionally recomputed in the backward pass."""

    def __init__(self, blocks: list[nn.Module], gradient_checkpointing: bool = False) -> None:
        super().__init__(blocks)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) and (B, E) → what the last block gives."""
        for block in self:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, embedding, use_reentrant=False)
            else:
                x = block(x, embedding)
        return x


class Dropout(nn.Dropout):
    """Dropout whose masks are windows of a tape of random bits, each row with its own start.

    `tape` (n,) bool, true with probability 1 − p, and `starts` (B,) int64 are set before each pass of a batch
    in training. Without a tape it is torch's own; those masks depend on how the batch is split.
    """

    tape: Tensor | None = None
    starts: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape: kept numbers divided by 1 − p, the others 0; all of `x` in eval."""
        if self.tape is None or self.starts is None or not self.training:
            return super().forward(x)
        return torch.where(_tape_windows(self.tape, self.starts, x), x / (1 - self.p), 0.0)


def _tape_windows(tape: Tensor, starts: Tensor, x: Tensor) -> Tensor:
    """The tape from each start on, as (B, C, H, W) in `x`'s layout; the layout does not change a mask."""
    channels, height, width = x.shape[1:]
    pixels = height * width
    count = len(tape) - channels * pixels + 1
    if x.is_contiguous():
        windows = tape.as_strided((count, channels, height, width), (1, pixels, width, 1))
        return windows.index_select(0, starts)
    windows = tape.as_strided((count, height, width, channels), (1, width, 1, pixels))
    return windows.index_select(0, starts).permute(0, 3, 1, 2)


class ExactConv2d(nn.Conv2d):
    """A convolution in its weights' own precision, under autocast and in a rounded copy too.

    The first convolution takes x_t. Its noise at small t is as small as bfloat16's rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H', W'), in the weights' type."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
