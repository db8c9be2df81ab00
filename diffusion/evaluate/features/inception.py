"""TensorFlow's Inception v3 of 2015, by torch-fidelity: the network of the field's FID, KID and IS."""

from typing import IO

from torch import Tensor, nn

from diffusion.protocol.extractors import ExtractorSpec

LAYERS = ["2048", "logits_unbiased"]


class Inception(nn.Module):
    """uint8 (B, 3, H, W) → features (B, 2048) and logits (B, 1008), float32."""

    def __init__(self, name: str, weights: IO[bytes]) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(name, LAYERS, feature_extractor_weights_path=weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch."""
        features, logits = self.network(images)
        return features, logits


def build(spec: ExtractorSpec, weights: IO[bytes]) -> Inception:
    """The network with the published weights."""
    return Inception(spec.name, weights)
