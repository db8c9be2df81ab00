"""Denoisers: functions from a noisy image to a prediction of x_0 and ε."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser_output import Network, Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.system.devices import float64_device, to_device


class Denoiser(Protocol):
    """Predicts x_0 and ε of noisy images. Guidance wraps one and is one."""

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """What x (B, C, H, W) is made of, in its dtype; `t` is the time of all, or (B,) of each row."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network within the process that it was trained for."""

    network: Network
    process: NoiseProcess

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """One forward pass."""
        rows = expand_times(t, x)
        output = self.network(x, rows, condition.labels)
        if not isinstance(t, Tensor):
            times = torch.tensor(t)
        else:  # on a device without float64 the tables lie where the times come from
            times = rows if float64_device(x.device) == x.device else t
        return self.process.read(output.to(x.dtype), x, times)


def expand_times(t: Tensor | float, x: Tensor) -> Tensor:
    """Return the time of each row of x (B, …), (B,) on its device; nothing waits for it to be there."""
    if isinstance(t, Tensor):
        return to_device(t, x.device)
    return torch.full((len(x),), t, device=x.device)
