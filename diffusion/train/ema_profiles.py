"""Averages of the weights: the EMA with a warm-up, and power-function averages with a relative width σ_rel.

Power-function averages are those of EDM2 (Karras et al. 2024, 2312.02696, sec. 3).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.model.power_ema import newest_weight
from diffusion.train.distributed.process_group import buckets


def ema_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode that takes no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def warmed_decay(decay: float, step: int) -> float:
    """Return min(decay, (1+k)/(10+k)) for update k, so that early averages forget the initialisation."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, decay: float, finite: Tensor) -> None:
    """ema ← decay·ema + (1 − decay)·network, in place, if the boolean scalar `finite` is true.

    `finite` may be on a GPU; the host does not wait for it.
    """
    averages: list[Tensor] = list(ema.parameters())
    weights: list[Tensor] = list(network.parameters())
    part = (1 - decay) * finite.to(averages[0].dtype)
    if part.device.type == "cpu":
        torch._foreach_lerp_(averages, weights, [part] * len(averages))
    else:
        lerp_tensors(averages, weights, part)


def lerp_tensors(averages: list[Tensor], weights: list[Tensor], part: Tensor) -> None:
    """averages ← averages + part·(weights − averages), in place; `part` is a scalar on their device.

    It uses a few kernels for many tensors, where a lerp by a device scalar takes one per tensor. The
    differences of one bucket of tensors are in memory at a time.
    """
    for pairs in buckets(list(zip(averages, weights, strict=True)), lambda pair: pair[0]):
        now, wanted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        differences = torch._foreach_sub(wanted, now)
        torch._foreach_mul_(differences, part)
        torch._foreach_add_(now, list(differences))


def new_profiles(network: nn.Module, sigma_rels: Sequence[float]) -> nn.ModuleList:
    """Return a copy of the network per σ_rel, which the first update overwrites."""
    return nn.ModuleList(ema_copy(network) for _ in sigma_rels)


@torch.no_grad()
def update_profiles(
    profiles: nn.ModuleList, network: nn.Module, sigma_rels: Sequence[float], steps: int
) -> None:
    """Add the weights after `steps` steps to each average, in place.

    A non-finite step leaves the weights unchanged, so that the previous ones count once more.
    """
    for profile, sigma_rel in zip(profiles, sigma_rels, strict=True):
        torch._foreach_lerp_(
            list(profile.parameters()), list(network.parameters()), newest_weight(sigma_rel, steps)
        )
