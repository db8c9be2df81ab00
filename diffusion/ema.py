"""The exponential moving average of the weights, with a warm-up."""

import copy

import torch

from diffusion.unet import UNet


def ema_copy(network: UNet) -> UNet:
    """A copy in eval mode that takes part in no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1+k)/(10+k)) at the k-th update: early averages forget the random start quickly."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(ema: UNet, network: UNet, decay: float) -> None:
    """ema ← decay·ema + (1 − decay)·network, in place."""
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
