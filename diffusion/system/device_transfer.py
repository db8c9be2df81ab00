"""Tensors on their way to a device, for which nobody waits."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # kinds of device


def float64_device(device: torch.device) -> torch.device:
    """Where float64 numbers for work on the device lie: there, or on the CPU where it does not have them."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, itself where it lies there.

    From the CPU to a GPU it goes through pinned memory, and nobody waits for the copy: what is queued on the
    device afterwards finds it there.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")  # which may read memory that is free again
