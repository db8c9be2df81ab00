"""Networks in lower precision: the cast of a network, and how its numbers lie in memory."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.gaussian import Network

Precision = Literal["fp32", "bf16"]


def image_layout(precision: Precision, device: torch.device) -> torch.memory_format:
    """How weights and feature maps lie in memory: channels last for a GPU's bf16 convolutions."""
    if device.type == "cuda" and precision == "bf16":
        return torch.channels_last
    return torch.contiguous_format


def autocast(network: Network, precision: Precision) -> Network:
    """The network under autocast: float32 in and out, matrix products and convolutions in `precision`."""
    if precision == "fp32":
        return network
    network = rounded(network)

    def cast(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return network(x, t, labels).float()

    return cast


def rounded(network: Network) -> Network:
    """A copy of a frozen network whose products have bfloat16 weights: autocast rounds them at every call.

    A network that trains, or one that is no plain module, is returned as it is.
    """
    if not isinstance(network, nn.Module) or any(weight.requires_grad for weight in network.parameters()):
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return network
