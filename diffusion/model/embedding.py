"""The embedding of time, class and augmentation that conditions the blocks of a network."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model.network_registry import AUGMENTATION_NUMBERS, ConditionedSpec


def timestep_embedding(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """(B,) embedded times, real or whole → (B, width) sinusoids of periods 2π … 10,000·2π (DDPM app. B).

    The last one has that period with `shift` 1, as in DDPM's code; without it the next one would.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - shift))
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, width % 2))


class AugmentationEmbedding(nn.Module):
    """The part of an embedding for the augmentation of an image: linear, without a bias, initially zero.

    An image that was not transformed adds nothing, so a network that samples can omit the layer (Karras et
    al. 2022, 2206.00364, app. F.2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, AUGMENTATION_NUMBERS))

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, 9) → (B, width)."""
        return F.linear(numbers, self.weight)


class ConditionedNetwork(nn.Module):
    """Base of networks whose blocks take an embedding of time and class, of `width` numbers.

    A multilayer perceptron of sinusoids of the time, plus a row for each class and for "no label".
    """

    def __init__(self, spec: ConditionedSpec, sinusoids: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.time = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        if spec.num_classes:
            self.classes = nn.Embedding(spec.num_classes + spec.null_class, width)
        if spec.augmented:
            self.augmentation = AugmentationEmbedding(width)

    def sinusoids(self, t: Tensor) -> Tensor:
        """(B,) times → (B, sinusoids)."""
        raise NotImplementedError

    def embed(
        self, x: Tensor, t: Tensor, labels: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        """(B, E) activated embedding of (B,) embedded times, real or whole and labels, in `x`'s dtype.

        `augmentation` (B, 9) describes how images were transformed; None if they were not. ValueError unless
        there are labels exactly when the network is conditional.
        """
        if (labels is None) != (self.spec.num_classes == 0):
            raise ValueError("a conditional network needs labels, an unconditional one takes none")
        embedding = self.time(self.sinusoids(t).to(x.dtype))
        if labels is not None:
            embedding = embedding + self.classes(labels)
        if augmentation is not None:
            embedding = embedding + self.augmentation(augmentation.to(x.dtype))
        return F.silu(embedding)
