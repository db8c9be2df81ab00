"""Two convolutions with time and class between them."""

from torch import Tensor, nn

from diffusion.model.blocks import Dropout
from diffusion.model.network_registry import ModelConfig, NetworkSpec
from diffusion.system.section import PositiveInt, Probability


class TinyConfig(ModelConfig):
    """`width` channels."""

    width: PositiveInt = 4
    dropout: Probability = 0.0


class TinySpec(TinyConfig, NetworkSpec):
    """With what the data decides."""


class Tiny(nn.Module):
    """ε, and v where the variance is learned."""

    def __init__(self, spec: TinySpec) -> None:
        super().__init__()
        self.stem = nn.Conv2d(spec.in_channels, spec.width, 3, padding=1)
        self.time = nn.Linear(1, spec.width)
        self.classes = nn.Embedding(spec.num_classes + spec.null_class, spec.width)
        self.dropout = Dropout(spec.dropout)
        self.head = nn.Conv2d(spec.width, spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,), labels (B,) → (B, C or 2C, H, W)."""
        condition = self.time(t.to(x.dtype)[:, None] / 1000) + self.classes(labels)
        return self.head(self.dropout(nn.functional.silu(self.stem(x) + condition[:, :, None, None])))
