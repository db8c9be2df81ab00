"""A checkpoint for `diffctl import openai`: a zip with a pickle, or the older layout."""

import io
from collections import OrderedDict
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from diffusion.interop.from_openai import import_openai, weight_names
from diffusion.model.presets import PRESETS, Preset
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec

SHAPE = {
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "head_channels": 8,
}
FAMILY = PRESETS["adm-64"]
SMALL = Preset(SHAPE, FAMILY.process, FAMILY.train, FAMILY.data, 8, 0, 0, "", False)
NAME = "a.pt"


@cache
def seeds() -> list[bytes]:
    """Return one checkpoint in both layouts, with and without classes."""
    made = []
    for classes, new_layout in ((0, True), (3, False)):
        spec = UNetSpec(**SHAPE, image_size=8, in_channels=1, out_channels=2, num_classes=classes)
        with torch.device("meta"):
            named = {theirs: shape for _, theirs, shape in weight_names(UNet(spec))}
        state = OrderedDict((name, torch.zeros(shape, dtype=torch.float16)) for name, shape in named.items())
        made.append(_file(state, new_layout))
    return made


def _file(state: dict[str, torch.Tensor], new_layout: bool) -> bytes:
    made = io.BytesIO()
    torch.save(state, made, _use_new_zipfile_serialization=new_layout)
    return made.getvalue()


def parse(path: Path) -> None:
    """Import it."""
    with patch.dict(PRESETS, small=SMALL):
        import_openai(path, "small")
