"""CLIP's image tower ViT-L/14@336 (Radford et al. 2021, 2103.00020): the features of CMMD (2401.09603).

As in CMMD, images are resized to 336×336 and embeddings have unit length. Weights are read by the names of
the `transformers` library and of OpenAI's file. Text towers are ignored.
"""

from collections.abc import Mapping
from functools import partial
from typing import IO

from torch import Tensor, nn

from diffusion.evaluate.features.extractor_weights import load_tensors
from diffusion.evaluate.features.vit import Vit, renamed, transformer, with_joined_attention
from diffusion.protocol.extractors import ExtractorSpec

PATCH = 14
NORMAL = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

TRANSFORMERS = {
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

OPENAI = {
    r"visual\.class_embedding": "cls_token",
    r"visual\.conv1": "patch_embed.proj",
    r"visual\.positional_embedding": "pos_embed",
    r"visual\.ln_pre": "norm_pre",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_": r"blocks.\1.attn.qkv.",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj": r"blocks.\1.attn.proj",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_(\d)": r"blocks.\1.norm\2",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc": r"blocks.\1.mlp.fc1",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj": r"blocks.\1.mlp.fc2",
    r"visual\.ln_post": "norm",
    r"visual\.proj$": "projection.weight",
}


def build(spec: ExtractorSpec, weights: IO[bytes]) -> Vit:
    """Build the network up to its projection; RuntimeError for other weights."""
    state = _named(load_tensors(weights))
    projection = state.pop("projection.weight", None)
    if projection is None or len(projection) != spec.features:
        raise RuntimeError(f"they have no projection to {spec.features} features")
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    norm = partial(nn.LayerNorm, eps=1e-5)
    options = {"norm_layer": norm, "pre_norm": True, "act_layer": "quick_gelu"}
    network = transformer(state, spec.size, PATCH, num_classes=0, **options)
    head = nn.Linear(projection.shape[1], len(projection), bias=False)
    head.load_state_dict({"weight": projection})
    return Vit(nn.Sequential(network, head), spec.size, NORMAL, unit=True)


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the image tower to timm's names."""
    if "visual.conv1.weight" not in state:
        return with_joined_attention(renamed(state, TRANSFORMERS))
    found = renamed(state, OPENAI)
    if "projection.weight" in found:
        found["projection.weight"] = found["projection.weight"].transpose(
            0, 1
        )  # OpenAI stores the features as columns
    return found
