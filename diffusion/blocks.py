"""The blocks of the ADM U-Net (2105.05233, app. A): residual and ConvNeXt blocks, resampling, attention."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.dropout import Dropout

Resampling = Literal["none", "up", "down"]


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters zero: its branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, or of as many as divide both when there are fewer or odd channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; unlike torch's module for one image of one pixel too."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def pixels_first(x: Tensor) -> bool:
    """Whether each pixel's channels lie side by side (channels_last) and not each channel's pixels."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) timesteps → (B, width) sinusoids of periods 2π … 10,000·2π (DDPM, after Vaswani et al.)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, width % 2))


def resample(x: Tensor, how: Resampling) -> Tensor:
    """Halve by averaging or double by repeating the last two axes; `none` leaves them.

    Slices and stacks: on CPUs torch's own pooling and interpolation take two to ten times as long. Doubling
    keeps the layout.
    """
    if how == "down":
        rows = x[:, :, ::2] + x[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]) / 4
    if how == "up" and pixels_first(x):
        return F.interpolate(x, scale_factor=2, mode="nearest")
    if how == "up":
        wide = torch.stack((x, x), dim=-1).flatten(-2)
        return torch.stack((wide, wide), dim=3).flatten(2, 3)
    return x


def doubled_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv`, 3×3 with padding 1, of doubled `x`: one transposed convolution of `x` with 4/9 of the products.

    Of the nine taps those that fall on copies of one pixel are added up beforehand: a 4×4 kernel, stride 2.
    """
    weight = conv.weight.float()  # float32 sums, of bfloat16 weights after `rounded`; autocast rounds them
    wide = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
    return F.conv_transpose2d(x, kernel.flip(2, 3).transpose(0, 1), conv.bias, stride=2, padding=1)


class Conditioning(nn.Module):
    """Lets the embedding into the norm: AdaGN, norm(h)·(1+scale)+shift (ADM eq. 3), or norm(h+shift)."""

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
        if pixels_first(h):
            return torch.addcmul(shift[..., None, None], self.norm(h), 1 + scale[..., None, None])
        return self._at_once(h, scale.float(), shift.float())

    def _at_once(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Scale and shift joined to the norm's own, so that one pass does both.

        With the batch laid along the channels every image has its own.
        """
        weight = self.norm.weight * (1 + scale)
        bias = torch.addcmul(shift, self.norm.bias, 1 + scale)
        batch, channels = h.shape[:2]
        one = h.reshape(1, batch * channels, *h.shape[2:])
        groups = batch * self.norm.num_groups
        return torch.group_norm(one, groups, weight.flatten(), bias.flatten(), self.norm.eps).reshape(h.shape)


class ResBlock(nn.Module):
    """BigGAN's residual block as ADM uses it: norm, SiLU, (resample,) conv, conditioning, SiLU, zero conv."""

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
        if self.resampling == "up":
            h = doubled_conv(self.conv_in, h)
        else:
            h = self.conv_in(resample(h, self.resampling))
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


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v over (B, heads, pixels, d).

    For few pixels in bfloat16 on a CPU the formula as it stands: torch's fused backward pass has a fixed cost
    for each head there, of up to ten times the work.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 256:
        return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention over pixels, the non-local block, with a zero-initialised output."""

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
        # The fused kernels need each pixel's channels side by side; without them this costs twice the time.
        h = attend(*qkv.transpose(-1, -2).contiguous().unbind(1))
        return x + self.project(h.transpose(-1, -2).reshape(batch, channels, height, width))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Plain halving: a 3×3 convolution with stride 2 (DDPM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2)."""
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Plain doubling: repeated pixels, then a 3×3 convolution (DDPM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return doubled_conv(self.conv, x)


class Stage(nn.ModuleList):
    """Blocks one after another, each seeing the embedding; recomputed in the backward pass if asked."""

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
