"""A forward pass of example images, for shapes, memory and FLOPs."""

import torch
from torch import Tensor, nn

from diffusion.model.network_registry import NetworkSpec


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
