"""TensorFlow's Inception v3 of 2015, from torch-fidelity: the network of FID, KID and IS."""

import io
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor, nn

from diffusion.evaluate.features.extractor_weights import load_tensors
from diffusion.protocol.extractors import ExtractorSpec

LAYERS = ["2048", "logits_unbiased"]


class Inception(nn.Module):
    """uint8 (B, 3, H, W) → features (B, 2048) and logits (B, 1008), float32."""

    def __init__(self, name: str, weights: IO[bytes]) -> None:
        super().__init__()
        self.network = torch_fidelity_network(name, LAYERS, weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of a batch."""
        features, logits = self.network(images)
        return features, logits


def build(spec: ExtractorSpec, weights: IO[bytes]) -> Inception:
    """Build the network with the published weights."""
    return Inception(spec.name, weights)


def torch_fidelity_network(name: str, layers: Sequence[str], weights: IO[bytes]) -> nn.Module:
    """Build torch-fidelity's network with these output layers and the tensors of a file.

    torch-fidelity unpickles any file, so it receives only the verified tensors. RuntimeError for other
    weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = io.BytesIO()
    torch.save(load_tensors(weights), tensors)
    tensors.seek(0)
    network: nn.Module = FeatureExtractorInceptionV3(
        name, list(layers), feature_extractor_weights_path=tensors
    )
    return network
