"""A classifier of noised images: the ADM U-Net's encoder under an attention pool (2105.05233, sec. 4)."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model.blocks import GroupNorm, set_norms
from diffusion.model.model_file import Artefact, LoadedModel, load_network, read_description
from diffusion.model.unet import Encoder
from diffusion.model.unet_config import UNetSpec


class AttentionPool(nn.Module):
    """Attention over a feature map with its mean as the query (CLIP, Radford et al. 2021, as in ADM)."""

    def __init__(self, channels: int, pixels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(pixels + 1, channels) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positions.to(x.dtype)
        parts = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(parts[0][:, :, :1], parts[1], parts[2])
        return self.project(pooled.flatten(1))  # type: ignore[no-any-return]


class Classifier(Encoder):
    """Logits of the classes of noised images at a timestep."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec.model_copy(update={"num_classes": 0, "null_class": False}))
        channels = self.skip_channels[-1]
        height, width = spec.level_sizes(spec.size)[-1]
        self.norm = GroupNorm(channels)
        self.pool = AttentionPool(channels, height * width, spec.heads_of(channels), spec.num_classes)
        set_norms(self, spec.norm_eps, spec.group_channels)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), embedded times t (B,) → (B, classes) logits; `labels` are ignored."""
        h, _ = self.encode(x, self.embed(x, t, None))
        return self.pool(F.silu(self.norm(h)))  # type: ignore[no-any-return]


class ClassifierArtefact(Artefact):
    """The metadata of a classifier's file; it distinguishes `network.num_classes` classes."""

    kind: Literal["classifier"]
    network: UNetSpec

    def check_channels(self) -> None:
        """Raise ValueError unless the network gives a logit for each of its classes."""
        logits, classes = self.network.out_channels, self.network.num_classes
        if logits != classes:
            raise ValueError(f"network.out_channels {logits} is not num_classes, {classes}")


def load_classifier(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Build the classifier that the file describes and load its weights; DiffctlError for any other file."""
    return load_network(path, read_description(path, ClassifierArtefact), Classifier, device)
