"""Vision transformers as extractors: timm's network, the pixels that it wants, and renamed weights.

Features equal those of the published code but for rounding (`evaluate/test_vit.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 64  # channels of an attention head in every network of this shape


class Vit(nn.Module):
    """uint8 (B, 3, H, W) → features (B, D), float32, and no logits.

    Pixels are resized bicubically, antialiased, which is Pillow's resize of floats; scaled to [0, 1], where
    `clip` is set clipped to it, and normalised by `mean` and `std` of each channel. `unit` features have the
    length 1.
    """

    normal: Tensor  # mean and standard deviation of the channels

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
        """Features of a batch."""
        x = (
            functional.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True)
            / 255
        )
        x = x.clamp(0, 1) if self.clip else x
        mean, std = self.normal
        features = self.network((x - mean) / std)
        return functional.normalize(features, dim=-1) if self.unit else features, None


def transformer(state: Mapping[str, Tensor], size: int, patch: int, **options: Any) -> nn.Module:
    """timm's network of the width and depth that the weights have, with them loaded.

    RuntimeError for weights that are of no such network.
    """
    from timm.models.vision_transformer import VisionTransformer

    if "cls_token" not in state:
        raise RuntimeError("they are of no vision transformer that is known here")
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
    """The tensors whose name starts as one of `names`, that part replaced; the others are dropped."""
    found = {}
    for name, tensor in state.items():
        start = next((start for start in names if re.match(start, name)), None)
        if start is not None:
            found[re.sub(start, names[start], name, count=1)] = tensor
    return found


def with_joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each block's attn.q, attn.k and attn.v as the one attn.qkv."""
    joined = {name: tensor for name, tensor in state.items() if not re.search(r"attn\.[qkv]\.", name)}
    for name in state:
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return joined
