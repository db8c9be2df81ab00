"""Vision transformers as extractors, by timm: DINOv2 for FD-DINOv2, and CLIP's image tower for CMMD.

Features equal those of the published code up to rounding (tests/evaluate/test_vit.py).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from diffusion.evaluate.features.extractors import load_tensors
from diffusion.protocol.extractors import ExtractorSpec

PATCH = 14
HEAD_WIDTH = 64  # channels of an attention head in every network of this shape
OFFSET = 0.1  # added to the number of patches by DINOv2's code; it shifts the interpolation
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_NORMAL = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Prefixes of tensor names in the published files, and timm's names for them
DINOV2 = {r"(?=cls_token|pos_embed|patch_embed\.|blocks\.|norm\.)": ""}
CLIP = {
    r"vision_model\.embeddings\.class_embedding": "cls_token",
    r"vision_model\.embeddings\.patch_embedding": "patch_embed.proj",
    r"vision_model\.embeddings\.position_embedding\.weight": "pos_embed",
    r"vision_model\.pre_layrnorm": "norm_pre",
    r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.(q|k|v)_proj": r"blocks.\1.attn.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj": r"blocks.\1.attn.proj",
    r"vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)": r"blocks.\1.norm\2",
    r"vision_model\.encoder\.layers\.(\d+)\.mlp": r"blocks.\1.mlp",
    r"vision_model\.post_layernorm": "norm",
    r"visual_projection": "projection",
}


class Vit(nn.Module):
    """uint8 (B, 3, H, W) → features (B, D), float32; no logits.

    Pixels are resized by `resize`, scaled to [0, 1] and normalised per channel. `unit` normalises features
    to length 1.
    """

    normal: Tensor  # (2, 3, 1, 1): mean and standard deviation of the channels

    def __init__(
        self,
        network: nn.Module,
        size: int,
        normal: tuple[Sequence[float], Sequence[float]],
        resize: Callable[[Tensor, int], Tensor],
        *,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.size, self.resize, self.unit = network, size, resize, unit
        self.register_buffer("normal", torch.tensor(normal).reshape(2, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the features of a batch."""
        mean, std = self.normal
        features = self.network((self.resize(images, self.size) / 255 - mean) / std)
        return functional.normalize(features, dim=-1) if self.unit else features, None


def resize_floats(images: Tensor, size: int) -> Tensor:
    """Resize bicubically with antialiasing and clip, as Pillow resizes channels of float32."""
    resized = functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255)


def resize_bytes(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (B, 3, H, W) bicubically by Pillow, which rounds and clips to 8 bits after each axis."""
    pictures = [Image.fromarray(one) for one in images.permute(0, 2, 3, 1).cpu().numpy()]
    resized = [np.asarray(one.resize((size, size), Image.Resampling.BICUBIC)) for one in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device, torch.float32)


def build_dinov2(spec: ExtractorSpec, weights: IO[bytes]) -> Vit:
    """Build DINOv2 ViT-L/14 (2304.07193), the features of FD-DINOv2 (2306.04675).

    Images are resized to 224×224 and the class token is used, as in dgm-eval with `--clean_resize`.
    """
    state = _renamed(load_tensors(weights), DINOV2)
    state["pos_embed"] = positions(state["pos_embed"], spec.size // PATCH)
    if (width := state["cls_token"].shape[-1]) != spec.features:
        raise RuntimeError(f"they are of a network that gives {width} features, not {spec.features}")
    network = _transformer(state, spec.size, init_values=1.0)
    return Vit(network, spec.size, IMAGENET, resize_floats)


def build_clip(spec: ExtractorSpec, weights: IO[bytes]) -> Vit:
    """Build CLIP's ViT-L/14@336 up to its projection (2103.00020).

    As in CMMD (2401.09603), 8-bit images are resized to 336×336 and embeddings have unit length.
    """
    state = _renamed(load_tensors(weights), CLIP)
    projection = state.pop("projection.weight")
    if len(projection) != spec.features:
        raise RuntimeError(f"they have no projection to {spec.features} features")
    for name in [name for name in state if ".attn.q." in name]:  # timm joins query, key and value
        parts = [state.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    norm = partial(nn.LayerNorm, eps=1e-5)
    network = _transformer(state, spec.size, norm_layer=norm, pre_norm=True, act_layer="quick_gelu")
    head = nn.Linear(projection.shape[1], len(projection), bias=False)
    head.load_state_dict({"weight": projection})
    return Vit(nn.Sequential(network, head), spec.size, CLIP_NORMAL, resize_bytes, unit=True)


def positions(embeddings: Tensor, side: int) -> Tensor:
    """Resize position embeddings (1, 1 + n², D) to another grid of patches, (1, 1 + side², D).

    Bicubic without antialiasing, with the scale (side + 0.1)/n of DINOv2's code.
    """
    token, patches = embeddings[:, :1], embeddings[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    if n == side:
        return embeddings
    grid = patches.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / n
    resized = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], dim=1)


def _transformer(state: Mapping[str, Tensor], size: int, **options: Any) -> nn.Module:
    """Build timm's network with the width and depth of the weights, and load them."""
    from timm.models.vision_transformer import VisionTransformer

    width = state["cls_token"].shape[-1]
    network: nn.Module = VisionTransformer(
        img_size=size,
        patch_size=PATCH,
        embed_dim=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        num_heads=width // HEAD_WIDTH,
        num_classes=0,
        global_pool="token",
        **options,
    )
    network.load_state_dict(state, strict=True)
    return network


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the matching prefix of each name as in `names`; drop other tensors."""
    return {
        re.sub(start, new, name, count=1): tensor
        for name, tensor in state.items()
        for start, new in names.items()
        if re.match(start, name)
    }
