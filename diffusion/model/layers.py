"""Layers of any network: the embedding of time and class, blocks in sequence, dropout, exact layers.

`example_pass` runs a network once, for shapes, memory and FLOPs.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.model.network_registry import AUGMENTATION_NUMBERS, ConditionedSpec, NetworkSpec

LEVEL_SCALE = 100.0  # of noise levels in an embedding of times


def timestep_embedding(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """Return sinusoids (B, width) of embedded times (B,), of periods 2π … 10,000·2π (DDPM app. B).

    With `shift` 1 the last period is 10,000·2π, as in DDPM's code; with 0 it is one step shorter.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - shift))
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, width % 2))


class ZeroLinear(nn.Linear):
    """A linear layer that is initialised to zero without drawing random numbers."""

    def reset_parameters(self) -> None:
        """Zero the weights."""
        nn.init.zeros_(self.weight)


class ConditionedNetwork(nn.Module):
    """Base of networks with blocks that take an embedding of time and class, of `width` numbers.

    The embedding is a multilayer perceptron of sinusoids of the time, plus a row for each class and for "no
    label", plus a perceptron of sinusoids of the noise on a low-resolution image.
    """

    def __init__(self, spec: ConditionedSpec, sinusoids: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.time = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        if spec.num_classes:
            self.classes = nn.Embedding(spec.num_classes + spec.null_class, width)
        if spec.augmented:  # it adds nothing for an untransformed image (2206.00364, app. F.2)
            self.augmentation = ZeroLinear(AUGMENTATION_NUMBERS, width, bias=False)
        if spec.cond_noise:
            self.noise = nn.Sequential(
                nn.Linear(sinusoids, width), nn.SiLU(), ZeroLinear(width, width, bias=False)
            )

    def sinusoids(self, t: Tensor) -> Tensor:
        """Return the sinusoids (B, n) of embedded times (B,), whole or real."""
        raise NotImplementedError

    def join(self, x: Tensor, low_res: Tensor | None) -> Tensor:
        """Return x (B, C, H, W) with low-resolution images (B, C, h, w), enlarged, as further channels.

        They are enlarged bilinearly, as in ADM. ValueError unless there are some exactly when the network
        takes them.
        """
        if (low_res is None) != (self.spec.low_res is None):
            raise ValueError("a network with low_res needs low-resolution images, another one takes none")
        if low_res is None:
            return x
        enlarged = F.interpolate(low_res.to(x.dtype), x.shape[2:], mode="bilinear")
        return torch.cat([x, enlarged], dim=1)

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None,
        augmentation: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """Return the activated embedding (B, E) of embedded times (B,) and labels, in `x`'s dtype.

        `augmentation` (B, 9) describes how images were transformed; None if they were not. `noise_level` (B,)
        is that on low-resolution images. ValueError unless there are labels and levels exactly when the
        network takes them.
        """
        if (labels is None) != (self.spec.num_classes == 0):
            raise ValueError("a conditional network needs labels, an unconditional one takes none")
        if (noise_level is None) != (not self.spec.cond_noise):
            raise ValueError("a network with cond_noise needs levels of noise, another one takes none")
        embedding = self.time(self.sinusoids(t).to(x.dtype))
        if labels is not None:
            embedding = embedding + self.classes(labels)
        if augmentation is not None:
            embedding = embedding + self.augmentation(augmentation.to(x.dtype))
        if noise_level is not None:
            embedding = embedding + self.noise(self.sinusoids(LEVEL_SCALE * noise_level).to(x.dtype))
        return F.silu(embedding)


def zero(module: nn.Module) -> nn.Module:
    """Zero all parameters of a module, so that a residual block that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Stage(nn.ModuleList):
    """Blocks in sequence, each with the embedding; optionally recomputed in the backward pass."""

    def __init__(self, blocks: list[nn.Module], gradient_checkpointing: bool = False) -> None:
        super().__init__(blocks)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the output of the last block, for x (B, ...) and the embedding (B, E)."""
        for block in self:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, embedding, use_reentrant=False)
            else:
                x = block(x, embedding)
        return x


class Dropout(nn.Dropout):
    """Dropout with masks that are windows of a tape of random bits; each row has its own start.

    `tape` (n,) bool, true with probability 1 − p, and `starts` (B,) int64 are set before each pass of a batch
    in training. Without a tape it is torch's own; those masks depend on how the batch is split.
    """

    tape: Tensor | None = None
    starts: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) → the same shape: kept numbers divided by 1 − p, the others 0; all of `x` in eval."""
        if self.tape is None or self.starts is None or not self.training:
            return super().forward(x)
        return torch.where(_tape_windows(self.tape, self.starts, x), x / (1 - self.p), 0.0)


def _tape_windows(tape: Tensor, starts: Tensor, x: Tensor) -> Tensor:
    """Return the tape from each start on, (B, ...) in `x`'s layout; the layout does not change a mask."""
    shape = x.shape[1:]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    windows = (len(tape) - math.prod(shape) + 1, *shape), (1, *strides)
    if x.ndim == 4 and not x.is_contiguous():
        (count, channels, height, width), (_, pixels, row, _) = windows
        by_pixel = tape.as_strided((count, height, width, channels), (1, row, 1, pixels))
        return by_pixel.index_select(0, starts).permute(0, 3, 1, 2)
    return tape.as_strided(*windows).index_select(0, starts)


class Exact(nn.Module):
    """A layer in its weights' own precision, under autocast and in a rounded copy too.

    A network's first layer takes x_t. Its noise at small t is as small as bfloat16's rounding.
    """

    weight: Tensor

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Return the layer's output in the weights' type."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype), *rest)  # type: ignore[no-any-return]


class ExactConv2d(Exact, nn.Conv2d):
    """An exact convolution."""


class ExactLinear(Exact, nn.Linear):
    """An exact linear layer."""


def example_pass(network: nn.Module, spec: NetworkSpec, images: int = 1) -> Tensor:
    """Return the output for black images at time 0, with all conditions that the spec names.

    The inputs are on torch's default device.
    """
    x = torch.zeros(images, *spec.shape)
    t = torch.zeros(images, dtype=torch.int64)
    further = {}
    if spec.low_res_size is not None:
        further["low_res"] = torch.zeros(images, spec.in_channels, *spec.low_res_size)
    if spec.cond_noise:
        further["noise_level"] = torch.zeros(images)
    output: Tensor = network(x, t, t if spec.num_classes else None, **further)
    return output
