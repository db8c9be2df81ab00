"""A spatial map of Inception v3: the features of sFID (Nash et al. 2021, 2103.03841).

FID's features are averaged over the image; these keep their positions. As in OpenAI's evaluator, they are the
first 7 channels of the tensor `mixed_6/conv:0` of TensorFlow's network of 2015-12-05, at 17×17 positions.
torch-fidelity calls that convolution Mixed_6d.branch1x1.
"""

from typing import IO

from torch import Tensor, nn

from diffusion.evaluate.features.inception import torch_fidelity_network
from diffusion.protocol.extractors import ExtractorSpec

CHANNELS = 7  # 2,023 features in total, similar to FID's 2,048
BLOCK, BRANCH = "Mixed_6d", "Mixed_6d.branch1x1"


class SpatialInception(nn.Module):
    """uint8 (B, 3, H, W) → features (B, 17·17·7), float32, positions before channels; no logits."""

    def __init__(self, name: str, weights: IO[bytes], size: int) -> None:
        super().__init__()
        whole = torch_fidelity_network(name, ["768"], weights)
        blocks = dict(whole.named_children())  # in forward order
        before = [blocks[name] for name in list(blocks)[: list(blocks).index(BLOCK)]]
        self.network = nn.Sequential(*before, whole.get_submodule(BRANCH))
        self.size = size

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the features of a batch."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(
            images.float(), size=(self.size, self.size), align_corners=False
        )
        seen = self.network((resized - 128) / 128)[:, :CHANNELS]
        return seen.permute(0, 2, 3, 1).flatten(1), None


def build(spec: ExtractorSpec, weights: IO[bytes]) -> SpatialInception:
    """Build the network with the published weights."""
    return SpatialInception(spec.name, weights, spec.size)
