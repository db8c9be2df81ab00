"""DiT (2212.09748): a transformer over patches of pixels, with fixed positions and adaLN-zero blocks."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model import kernels
from diffusion.model.dit_config import DiTSpec
from diffusion.model.layers import (
    ConditionedNetwork,
    Dropout,
    ExactConv2d,
    ExactLinear,
    Stage,
    timestep_embedding,
    zero,
)

SINUSOIDS = 256  # of the time
NORM_EPS = 1e-6


def grid_positions(size: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Return sines and cosines of the row and of the column of each token of (H, W), (H·W, width).

    The rows take one half of the numbers and the columns the other. `width` is divisible by 4. A larger image
    has further positions, and the others stay.
    """
    rows, columns = (timestep_embedding(torch.arange(side, device=device), width // 2) for side in size)
    parts = [rows[:, None].expand(*size, -1), columns[None].expand(*size, -1)]
    return torch.cat(parts, dim=2).flatten(0, 1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return LN(x)·(1 + scale) + shift, (B, N, D), for x (B, N, D), scale and shift (B, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """A transformer block with adaLN-zero (sec. 3.2); it starts as the identity.

    x + gate·attention(modulate(x)), then the same with a perceptron. The embedding is projected to scale,
    shift and gate of both, and the projection starts as zero.
    """

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        width, hidden = spec.width, int(spec.mlp_ratio * spec.width)
        self.heads = spec.heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv = linear(width, 3 * width)
        self.project = linear(width, width)
        self.expand = linear(width, hidden)
        self.dropout = Dropout(spec.dropout)
        self.contract = linear(hidden, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, N, D) and the activated (B, D) embedding → (B, N, D)."""
        modulation = self.modulation(embedding).chunk(6, dim=1)
        scale, shift, gate = modulation[:3]
        x = x + gate[:, None] * self._attention(modulate(x, scale, shift))
        scale, shift, gate = modulation[3:]
        h = F.gelu(self.expand(modulate(x, scale, shift)), approximate="tanh")
        return x + gate[:, None] * self.contract(self.dropout(h))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(0, 2, 3, 1, 4)
        return self.project(kernels.attention(qkv).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DiT(ConditionedNetwork):
    """The prediction, then v of a learned variance, of noised images at a time and a class.

    The embeddings of time and class have PyTorch's initial weights, not the authors' N(0, 0.02²).
    """

    spec: DiTSpec

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__(spec, SINUSOIDS, spec.width)
        patch, width = spec.patch_size, spec.width
        self.stem = ExactConv2d(spec.input_channels, width, patch, stride=patch)
        xavier(self.stem)
        self.blocks = Stage([DiTBlock(spec) for _ in range(spec.depth)], spec.gradient_checkpointing)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(ExactLinear(width, spec.out_channels * patch**2))

    def sinusoids(self, t: Tensor) -> Tensor:
        """Return the sinusoids (B, 256) of times (B,)."""
        return timestep_embedding(t, SINUSOIDS)

    def shard_units(self) -> list[nn.Module]:
        """Return the blocks, the modules that a sharded training gathers one after another."""
        return list(self.blocks)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        augmentation: Tensor | None = None,
        low_res: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), t (B,), labels (B,) → (B, C or 2C, H, W); arguments are as those of the U-Net."""
        embedding = self.embed(x, t, labels, augmentation, noise_level)
        h = self.stem(self.join(x, low_res))
        size = h.shape[2:]
        positions = grid_positions(size, self.spec.width, x.device)
        h = self.blocks(h.flatten(2).transpose(1, 2) + positions.to(h.dtype), embedding)
        h = self.head(modulate(h, *self.modulation(embedding).chunk(2, dim=1)))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, size), self.spec.patch_size)


def linear(width: int, out: int) -> nn.Linear:
    """Return a linear layer with Xavier's initial weights."""
    layer = nn.Linear(width, out)
    xavier(layer)
    return layer


def xavier(layer: nn.Linear | nn.Conv2d) -> None:
    """Fill weights with variance 2/(fan-in + fan-out) (Glorot & Bengio 2010, eq. 16), and zero the bias."""
    bound = math.sqrt(6 / (len(layer.weight) + layer.weight[0].numel()))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
