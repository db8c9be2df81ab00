"""Layers that preserve magnitudes (Karras et al. 2023, 2312.02696, app. B): of variance 1 if x is."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model.layers import Exact

SILU_RMS = 0.596  # of silu(x) for a standard-normal x (eq. 81)
EPS = 1e-4


class MPLayer(nn.Module):
    """A linear layer, or a convolution of `kernel`×`kernel` pixels, with weights of magnitude 1 (eq. 47, 66).

    Whatever the magnitude of the parameter, each output has a weight vector of norm 1. After each step of the
    optimiser `project` sets the parameter to that direction, so that its rate does not depend on its growth
    (sec. 2.3). There is no bias.
    """

    weight: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * (2 * (kernel > 0))))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """x (B, inputs) or (B, inputs, H, W) → `gain` times the output."""
        weight = normalized(self.weight) * (gain / math.sqrt(self.weight[0].numel()))
        if weight.ndim == 2:
            return F.linear(x, weight.to(x.dtype))
        return F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def project(self, finite: Tensor) -> None:
        """Set the parameter to magnitude 1, if `finite`, without a synchronisation."""
        self.weight.copy_(torch.where(finite, normalized(self.weight), self.weight))


class ExactMPLayer(Exact, MPLayer):
    """An MPLayer in its weights' own precision."""


class Fourier(nn.Module):
    """√2·cos(2π(f·c + φ)) of numbers c, with random f ~ N(0, 1) and φ ~ U(0, 1) (eq. 75)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves: Tensor
        self.register_buffer("waves", 2 * math.pi * torch.stack([torch.randn(width), torch.rand(width)]))

    def forward(self, c: Tensor) -> Tensor:
        """Return the waves (B, width) of c (B,), float32."""
        return (c[:, None].float() * self.waves[0] + self.waves[1]).cos() * math.sqrt(2)


def normalized(weight: Tensor) -> Tensor:
    """Return the weights with a mean square of 1 in each output's vector, float32 or wider."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rms = wide.flatten(1).square().mean(1).sqrt().clamp(min=EPS)
    return wide / rms.reshape(-1, *[1] * (weight.ndim - 1))


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """Return x divided by its root mean square along `dim`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rms = x.square().mean(dim, keepdim=True, dtype=wide).sqrt() + EPS
    return x / rms.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return silu(x)/0.596 (eq. 81)."""
    return F.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return ((1 − t)·a + t·b)/√((1 − t)² + t²) (eq. 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate channels so that both contribute equally (eq. 103 with t = 1/2)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([a * (scale / math.sqrt(a.shape[1])), b * (scale / math.sqrt(b.shape[1]))], dim=1)
