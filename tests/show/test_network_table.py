"""`show model`: parameters equal the network's, and FLOPs the closed forms of its layers."""

from typing import Any

import pytest
import torch
from torch import nn

from diffusion.model.blocks import Attention
from diffusion.model.presets import PRESETS
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.show.network_table import model
from tests.helpers.networks import spec_of

SHAPES: list[dict[str, Any]] = [
    {},
    {"block": "convnext"},
    {"resample": "plain", "heads": 2, "head_channels": None},
    {"channel_mult": (1, 2, 3), "num_res_blocks": 2, "attention_resolutions": (2, 4)},
    {"num_classes": 0, "null_class": False},
    {"patch_size": 2, "pixel_channels": 4, "image_size": 16},
    {"gradient_checkpointing": True, "in_channels": 3, "out_channels": 3},
]


def closed_form(spec: UNetSpec) -> int:
    """2·k²·C_in·C_out per pixel of a convolution, 2·in·out of a linear layer, 4·N²·C of attention."""
    found = []

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            side = layer.kernel_size[0] * layer.kernel_size[1]
            found.append(2 * side * layer.in_channels // layer.groups * made[0].numel())
        elif isinstance(layer, nn.Linear):
            found.append(2 * layer.in_features * made[0].numel())
        elif isinstance(layer, Attention):
            channels, *size = made[0].shape
            found.append(4 * (size[0] * size[1]) ** 2 * channels)

    with torch.device("meta"):
        network = UNet(spec).eval()
        for layer in network.modules():
            layer.register_forward_hook(note)
        t = torch.zeros(1, dtype=torch.int64)
        x = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)
        network(x, t, t if spec.num_classes else None)
    return sum(found)


@pytest.mark.parametrize("changes", SHAPES, ids=lambda changes: ",".join(changes) or "usual")
def test_totals_equal_the_network(changes: dict[str, Any]) -> None:
    spec = spec_of(**changes)
    shown = model(spec)
    assert shown.parameters == sum(parameter.numel() for parameter in UNet(spec).parameters())
    assert shown.flops == closed_form(spec)


def test_published_network_is_counted_without_memory() -> None:
    preset = PRESETS["adm-64"]
    shape = UNetSpec(**preset.model, image_size=64, in_channels=3, out_channels=6, num_classes=1000)
    shown = model(shape)
    assert shown.parameters == preset.parameters
    assert shown.flops == closed_form(shape)


def test_parts_are_in_forward_order_with_their_shapes() -> None:
    shown = model(spec_of())
    assert [part.name for part in shown.parts] == [
        *("time", "classes", "stem", "encoder", "encoder", "middle", "decoder", "decoder", "norm", "head")
    ]
    assert shown.parts[2].shape == (8, 8, 8)
    assert shown.parts[5].shape == (16, 4, 4)
    assert shown.parts[5].blocks == {"ResBlock": 2, "Attention": 1}
    assert shown.parts[-1].shape == (2, 8, 8)
