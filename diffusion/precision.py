"""Which precision a device gets, by rule and never by timing, so that two runs decide alike."""

from typing import Literal

import torch
from torch import Tensor

from diffusion.config import Precision
from diffusion.gaussian import Network


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 where the device multiplies it natively (AVX-512 BF16; GPUs from Ampere), else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(network: Network, precision: Precision) -> Network:
    """The network under autocast: float32 in and out, matrix products and convolutions in `precision`."""
    if precision == "fp32":
        return network

    def cast(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return network(x, t, labels).float()

    return cast
