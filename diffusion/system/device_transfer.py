"""Asynchronous transfers of tensors to a device."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # device types


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 values of work on `device`: itself, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; the tensor itself if it is there.

    From the CPU to a GPU it is pinned and copied asynchronously; kernels launched afterwards see the copy.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")  # MPS may read memory that was freed
