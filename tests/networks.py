"""Small networks with random weights everywhere: a fresh UNet's output is zero, which would prove nothing."""

from typing import Any

import torch

from diffusion.checkpoint import Artefact, DataCard
from diffusion.config import DiffusionConfig, TrainConfig
from diffusion.shape import UNetSpec
from diffusion.unet import UNet


def spec_of(**changes: Any) -> UNetSpec:
    """A conditional 8×8 network with learned variance, changed as given."""
    values: dict[str, Any] = {
        "channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention": (4,),
        "head_channels": 8,
        "image_size": 8,
        "in_channels": 1,
        "out_channels": 2,
        "num_classes": 10,
        "null_class": True,
    }
    return UNetSpec(**{**values, **changes})


def randomise(network: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Weights of variance about 1/fan-in and biases of 0.1, from the seed alone, in place."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=source) * scale / fan_in**0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight += 1


def network_of(spec: UNetSpec, seed: int = 0) -> UNet:
    """A network of this shape with random weights, in eval mode."""
    network = UNet(spec)
    randomise(network, seed)
    return network.eval().requires_grad_(False)


def artefact_of(spec: UNetSpec, timesteps: int = 100, **changes: Any) -> Artefact:
    """What a model file with this network would say of itself."""
    learned = spec.learned_variance
    diffusion = DiffusionConfig(
        timesteps=timesteps,
        variance="learned" if learned else "small",
        loss="hybrid" if learned else "simple",
    )
    classes = tuple(f"class{i}" for i in range(spec.num_classes))
    counts = tuple(range(1, spec.num_classes + 1))
    values: dict[str, Any] = {
        "network": spec,
        "diffusion": diffusion,
        "train": TrainConfig(steps=1, batch_size=1, lr=1e-3, p_uncond=0.1 if spec.null_class else 0.0),
        "data": DataCard(name="test", classes=classes, counts=counts, digest="0"),
        "step": 1,
        "precision": "fp32",
    }
    return Artefact(**{**values, **changes})
