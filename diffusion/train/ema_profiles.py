"""Power-function averages of the weights beside the EMA (Karras et al. 2024, 2312.02696, sec. 3)."""

from collections.abc import Sequence

import torch
from torch import nn

from diffusion.model.power_ema import newest_weight
from diffusion.train.ema import ema_copy


def new_profiles(network: nn.Module, widths: Sequence[float]) -> nn.ModuleList:
    """A copy of the network for each width, of whose weights the first step makes the first average."""
    return nn.ModuleList(ema_copy(network) for _ in widths)


@torch.no_grad()
def update_profiles(averages: nn.ModuleList, network: nn.Module, widths: Sequence[float], steps: int) -> None:
    """Let each average take in the weights after `steps` steps, in place.

    After a step that was not finite these are the ones before, which then count once more.
    """
    for average, width in zip(averages, widths, strict=True):
        torch._foreach_lerp_(
            list(average.parameters()), list(network.parameters()), newest_weight(width, steps)
        )
