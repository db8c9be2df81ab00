"""Mean colours of patches as features, without logits and without weights."""

from typing import IO

from torch import Tensor, nn
from torch.nn import functional

from diffusion.protocol.extractors import ExtractorSpec


class Pixels(nn.Module):
    """uint8 (B, 3, H, W) → the means of size×size patches, (B, 3·size²), and no logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Features of a batch."""
        return functional.adaptive_avg_pool2d(images.float(), self.size).flatten(1), None


def build(spec: ExtractorSpec, weights: IO[bytes] | None) -> Pixels:
    """Of the spec's size."""
    return Pixels(spec.size)
