"""Vision transformers as extractors: timm's network, pixel normalisation, and renamed weights.

Features equal those of the published code up to rounding (tests/evaluate/test_vit.py).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 64  # channels of an attention head in every network of this shape


class Vit(nn.Module):
    """uint8 (B, 3, H, W) → features (B, D), float32; no logits.

    Pixels are resized bicubically with antialiasing, which equals Pillow's resize of floats. They are scaled
    to [0, 1], clipped if `clip` is set, and normalised per channel. `unit` normalises the features to length
    1.
    """

    normal: Tensor  # (2, 3, 1, 1): mean and standard deviation of the channels

    def __init__(
        self,
        network: nn.Module,
        size: int,
        normal: tuple[Sequence[float], Sequence[float]],
        *,
        clip: bool = False,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.size, self.clip, self.unit = network, size, clip, unit
        self.register_buffer("normal", torch.tensor(normal).reshape(2, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the features of a batch."""
        x = (
            functional.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True)
            / 255
        )
        x = x.clamp(0, 1) if self.clip else x
        mean, std = self.normal
        features = self.network((x - mean) / std)
        return functional.normalize(features, dim=-1) if self.unit else features, None


def transformer(state: Mapping[str, Tensor], size: int, patch: int, **options: Any) -> nn.Module:
    """Build timm's network with the width and depth of the weights, and load them.

    RuntimeError for weights of another network.
    """
    from timm.models.vision_transformer import VisionTransformer

    if "cls_token" not in state:
        raise RuntimeError("they are of no known vision transformer")
    width = state["cls_token"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    network: nn.Module = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // HEAD_WIDTH,
        global_pool="token",
        **options,
    )
    network.load_state_dict(state, strict=True)
    return network


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the matching prefix of each name as in `names`; drop other tensors."""
    found = {}
    for name, tensor in state.items():
        start = next((start for start in names if re.match(start, name)), None)
        if start is not None:
            found[re.sub(start, names[start], name, count=1)] = tensor
    return found


def with_joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join each block's attn.q, attn.k and attn.v to attn.qkv."""
    joined = {name: tensor for name, tensor in state.items() if not re.search(r"attn\.[qkv]\.", name)}
    for name in state:
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return joined
