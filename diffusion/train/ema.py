"""The exponential moving average of the weights, with a warm-up."""

import copy

import torch
from torch import Tensor, nn

from diffusion.train.buckets import buckets


def ema_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that takes part in no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1+k)/(10+k)) at the k-th update: early averages forget the random start quickly."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, decay: float, finite: Tensor) -> None:
    """ema ← decay·ema + (1 − decay)·network, in place; where `finite`, a single truth value, is false, ema.

    That value may lie on a GPU: the host never waits to know it.
    """
    averages: list[Tensor] = list(ema.parameters())
    weights: list[Tensor] = list(network.parameters())
    part = (1 - decay) * finite.to(averages[0].dtype)  # to go no part of the way changes nothing
    if part.device.type == "cpu":
        torch._foreach_lerp_(averages, weights, [part] * len(averages))
    else:
        lerp_tensors(averages, weights, part)


def lerp_tensors(averages: list[Tensor], weights: list[Tensor], part: Tensor) -> None:
    """averages ← averages + part·(weights − averages), in place, `part` a single number on their device.

    By a few kernels for many tensors at once, where a lerp by such a number takes one a tensor. What lies
    between them is held of some tensors at a time.
    """
    for some in buckets(list(zip(averages, weights, strict=True)), lambda pair: pair[0]):
        now, wanted = [pair[0] for pair in some], [pair[1] for pair in some]
        ways = torch._foreach_sub(wanted, now)
        torch._foreach_mul_(ways, part)
        torch._foreach_add_(now, list(ways))
