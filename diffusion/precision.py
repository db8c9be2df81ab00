"""Which precision a device gets, by rule and never by timing, so that two runs decide alike."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.config import Precision, TrainConfig
from diffusion.gaussian import Network

COMPILED_STEPS = 2000  # compiling takes a minute or two


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 where the device multiplies it natively (AVX-512 BF16; GPUs from Ampere), else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Let a GPU from Ampere on round the factors of float32 products to TF32 (10 bits), or forbid it."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def image_layout(precision: Precision, device: torch.device) -> torch.memory_format:
    """How weights and feature maps lie in memory: channels last for a GPU's bf16 convolutions."""
    if device.type == "cuda" and precision == "bf16":
        return torch.channels_last
    return torch.contiguous_format


def compiles(train: TrainConfig, device: torch.device) -> bool:
    """Whether training compiles the network: `auto` on a GPU, unless the training ends before it pays."""
    if train.compile != "auto":
        return train.compile
    return device.type == "cuda" and train.steps >= COMPILED_STEPS


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
