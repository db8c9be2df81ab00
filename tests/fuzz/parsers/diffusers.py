"""A pipeline's unet/config.json for `diffctl import diffusers`, with valid weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.to_diffusers import translate, unet_config
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec

SHAPE: dict[str, Any] = {
    "channels": 32,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
}
SCHEDULER = {"num_train_timesteps": 10, "beta_schedule": "squaredcos_cap_v2"}
NAME = "config.json"


@cache
def network() -> UNet:
    """Return the network of the weights."""
    spec = UNetSpec(**SHAPE, image_size=8, in_channels=1, out_channels=1, num_classes=2, class_cond=True)
    torch.manual_seed(0)
    return UNet(spec)


@cache
def seeds() -> list[bytes]:
    """Return its configuration, and one of an older pipeline."""
    own = unet_config(network())
    older = {**own, "_class_name": "UNet2DModel", "flip_sin_to_cos": False, "freq_shift": 1}
    return [json.dumps(values).encode() for values in (own, older)]


def parse(path: Path) -> None:
    """Import the folder."""
    folder = path.parent
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    save_file(
        {name: tensor.contiguous() for name, tensor in translate(network()).items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    import_diffusers(folder)
