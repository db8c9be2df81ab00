"""DINOv2 ViT-L/14 (Oquab et al. 2023, 2304.07193): the features of FD-DINOv2 (Stein et al. 2023, 2306.04675).

They follow human judgement more closely than Inception's features. As in the published evaluation, images are
resized to 224×224 and the class token is used. Weights are read by the names of the published file and of the
`transformers` library.
"""

from collections.abc import Mapping
from typing import IO

import torch
from torch import Tensor
from torch.nn import functional

from diffusion.evaluate.features.extractor_weights import load_tensors
from diffusion.evaluate.features.vit import Vit, renamed, transformer, with_joined_attention
from diffusion.protocol.extractors import ExtractorSpec

PATCH = 14
OFFSET = 0.1  # added to the number of patches by the published code; it shifts the interpolation
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PUBLISHED = {r"(?=cls_token|pos_embed|patch_embed\.|blocks\.|norm\.)": ""}
TRANSFORMERS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer\.(\d+)\.norm": r"blocks.\1.norm",
    r"encoder\.layer\.(\d+)\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)": r"blocks.\1.attn.\2",
    r"encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)": r"blocks.\1.attn.proj",
    r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.mlp": r"blocks.\1.mlp",
    r"layernorm": "norm",
}


def build(spec: ExtractorSpec, weights: IO[bytes]) -> Vit:
    """Build the network with position embeddings of the spec's size; RuntimeError for other weights."""
    loaded = load_tensors(weights)
    names = TRANSFORMERS if "embeddings.cls_token" in loaded else PUBLISHED
    state = with_joined_attention(renamed(loaded, names))
    if "pos_embed" in state:
        state["pos_embed"] = positions(state["pos_embed"], spec.size // PATCH)
    network = transformer(state, spec.size, PATCH, num_classes=0, init_values=1.0)
    _check_width(state, spec)
    return Vit(network, spec.size, IMAGENET, clip=True)


def positions(embeddings: Tensor, side: int) -> Tensor:
    """Resize position embeddings (1, 1 + n², D) to another grid of patches, (1, 1 + side², D).

    Bicubic without antialiasing, with the scale (side + 0.1)/n of the published code.
    """
    token, patches = embeddings[:, :1], embeddings[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    if n == side:
        return embeddings
    grid = patches.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / n
    resized = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], dim=1)


def _check_width(state: Mapping[str, Tensor], spec: ExtractorSpec) -> None:
    if (width := state["cls_token"].shape[-1]) != spec.features:
        raise RuntimeError(f"they are of a network that gives {width} features, not {spec.features}")
