"""Denoisers: what is known of a noised image, whatever says it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.prediction import Network, Prediction
from diffusion.process.process import Process


class Denoiser(Protocol):
    """Says what it thinks of noised images. Guidance wraps one and is one."""

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """What x (B, C, H, W) is made of, in its dtype; `t` is the time of all, or (B,) of each row."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network within the process that it was trained for."""

    network: Network
    process: Process

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """One forward pass."""
        times = t if isinstance(t, Tensor) else torch.tensor(t)
        rows = t.to(x.device) if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
        output = self.network(x, rows, condition.labels)
        return self.process.read(output.to(x.dtype), x, times)
