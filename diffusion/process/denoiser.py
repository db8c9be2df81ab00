"""A network's output for a noisy image, the prediction of x_0 and ε in it, and denoisers that return one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.system.devices import float64_device, to_device

if TYPE_CHECKING:
    from diffusion.process.noise_process import NoiseProcess

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B, C, H, W), times (B,), labels or None) → (B, C or 2C, H, W): what it predicts, then iDDPM's v."""


class Prediction(NamedTuple):
    """A prediction for x_t, each (B, C, H, W): `x0` and `eps`, where x_t = α·x0 + σ·eps.

    `variance_fraction` is f of log Σ = f·log β + (1−f)·log β̃ (iDDPM eq. 15), None for a fixed variance.
    `mean_shift` is the gradient g by which a noisy step's mean moves, Σ·g (ADM alg. 1), None for no move.
    """

    x0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None
    mean_shift: Tensor | None = None

    def rows(self, index: slice | Tensor) -> "Prediction":
        """Return the prediction for some of the images."""
        return Prediction(*(None if part is None else part[index] for part in self))  # type: ignore[arg-type]


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values as (B, 1, 1, 1) on `like`'s device and in its dtype.

    A single () value stays on the CPU, from where it multiplies any device's tensor and nothing waits.
    """
    if values.ndim == 0:
        return values.to(like.dtype)
    return to_device(values.to(like.dtype), like.device).reshape(-1, *[1] * (like.ndim - 1))


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Part an output of C or 2C channels into what it predicts and f = (v+1)/2, None where there is no v."""
    if output.shape[1] == channels:
        return output, None
    predicted, v = output.chunk(2, dim=1)
    return predicted, (v + 1) / 2


class Denoiser(Protocol):
    """Predicts x_0 and ε of noisy images. Guidance wraps one and is one."""

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """What x (B, C, H, W) is made of, in its dtype; `t` is the time of all, or (B,) of each row."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network within the process that it was trained for."""

    network: Network
    process: "NoiseProcess"

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """One forward pass."""
        times = time_tensor(t)
        if times.ndim and float64_device(x.device) == x.device:  # where the process has its tables
            times = to_device(times, x.device)
        received, time = self.process.network_input(x, times)
        output = self.network(received, expand_times(time, x), condition.labels)
        return self.process.read(output.to(x.dtype), x, times)


def time_tensor(t: Tensor | float) -> Tensor:
    """Return a time as a tensor: a real number as float64, a whole one as int64."""
    if isinstance(t, Tensor):
        return t
    return torch.tensor(t, dtype=torch.float64 if isinstance(t, float) else torch.int64)


def expand_times(t: Tensor | float, x: Tensor) -> Tensor:
    """Return the time of each row of x (B, …), (B,) on its device; nothing waits for it to be there.

    Real times are in x's dtype. A single () time is on the CPU.
    """
    if isinstance(t, Tensor) and t.ndim:
        return to_device(t.to(x.dtype) if t.is_floating_point() else t, x.device)
    time = t.item() if isinstance(t, Tensor) else t
    return torch.full((len(x),), time, dtype=x.dtype if isinstance(time, float) else None, device=x.device)
