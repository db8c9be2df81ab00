"""TensorFlow's Inception v3 of 2015-12-05, from torch-fidelity: the network of FID, KID, IS and sFID."""

import io
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor, nn

from diffusion.evaluate.features.extractors import load_tensors
from diffusion.protocol.extractors import ExtractorSpec

LAYERS = ("2048", "logits_unbiased")
SPATIAL_CHANNELS = 7  # 2,023 features in total, similar to FID's 2,048
SPATIAL_BLOCK, SPATIAL_BRANCH = "Mixed_6d", "Mixed_6d.branch1x1"


def build(spec: ExtractorSpec, weights: IO[bytes]) -> nn.Module:
    """Build the network: uint8 (B, 3, H, W) → features (B, 2048) and logits (B, 1008), float32."""
    return _network(spec, LAYERS, weights)


class SpatialInception(nn.Module):
    """uint8 (B, 3, H, W) → features (B, 17·17·7), float32, positions before channels; no logits.

    A feature map instead of its mean, for sFID (Nash et al. 2021, 2103.03841). As in OpenAI's evaluator, it
    is the first 7 channels of `mixed_6/conv:0`, which torch-fidelity calls Mixed_6d.branch1x1.
    """

    def __init__(self, spec: ExtractorSpec, weights: IO[bytes]) -> None:
        super().__init__()
        whole = _network(spec, ["768"], weights)
        blocks = dict(whole.named_children())  # in forward order
        before = [blocks[name] for name in list(blocks)[: list(blocks).index(SPATIAL_BLOCK)]]
        self.network = nn.Sequential(*before, whole.get_submodule(SPATIAL_BRANCH))
        self.size = spec.size

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the features of a batch."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(
            images.float(), size=(self.size, self.size), align_corners=False
        )
        features = self.network((resized - 128) / 128)[:, :SPATIAL_CHANNELS]
        return features.permute(0, 2, 3, 1).flatten(1), None


def _network(spec: ExtractorSpec, layers: Sequence[str], weights: IO[bytes]) -> nn.Module:
    """Build torch-fidelity's network of the verified tensors; RuntimeError for other weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = io.BytesIO()
    torch.save(load_tensors(weights), tensors)
    tensors.seek(0)
    network: nn.Module = FeatureExtractorInceptionV3(
        spec.name, list(layers), feature_extractor_weights_path=tensors
    )
    return network
