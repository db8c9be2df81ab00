"""Which precision a training gets and whether it compiles: by rule, never by timing, so that runs agree."""

from typing import Literal

import torch

from diffusion.model.precision import Precision
from diffusion.train.train_config import OptimisationConfig

COMPILED_STEPS = 2000  # compiling takes a minute or two


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 where it is known to pay (AVX-512 BF16; NVIDIA's GPUs from Ampere on), else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "mps":
        return "fp32"  # bf16 where it is asked for: not all have it, and none was measured
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Let a GPU from Ampere on round the factors of float32 products to TF32 (10 bits), or forbid it."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def compiles(train: OptimisationConfig, device: torch.device) -> bool:
    """Whether training compiles the network: `auto` on a GPU, unless the training ends before it pays."""
    if train.compile != "auto":
        return train.compile
    return device.type == "cuda" and train.steps >= COMPILED_STEPS
