"""TensorFlow's Inception v3 of 2015, by torch-fidelity: the network of the field's FID, KID and IS."""

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
        """Features and logits of a batch."""
        features, logits = self.network(images)
        return features, logits


def build(spec: ExtractorSpec, weights: IO[bytes]) -> Inception:
    """The network with the published weights."""
    return Inception(spec.name, weights)


def torch_fidelity_network(name: str, layers: Sequence[str], weights: IO[bytes]) -> nn.Module:
    """Its network, which gives these layers, with the tensors of a file in either format.

    It would unpickle whatever it is given, so it gets the tensors alone, as a file of torch's. RuntimeError
    for those of another network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = io.BytesIO()
    torch.save(load_tensors(weights), tensors)
    tensors.seek(0)
    network: nn.Module = FeatureExtractorInceptionV3(
        name, list(layers), feature_extractor_weights_path=tensors
    )
    return network
