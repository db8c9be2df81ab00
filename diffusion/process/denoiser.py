"""The inputs and outputs of a denoiser: conditions, times, low-resolution images, predicted x_0 and ε."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError

Network = Callable[..., Tensor]
"""(x_t (B, C, H, W), times (B,), labels or None, and by name `Condition.further`) → (B, C or 2C, H, W).

The output is what the network predicts, then iDDPM's v.
"""


@dataclass(frozen=True, eq=False)
class Condition:
    """The inputs of a network apart from image and time, for `count` images.

    `labels` are (B,) int64, None for an unconditional network. `null_label` is the label that means none,
    where the network was trained with one. `augmentation` (B, 9) is how training images were transformed.
    `low_res` (B, C, h, w) are low-resolution images in about [−1, 1] that are enlarged, and `noise_level`
    (B,) is the standard deviation of the noise on each.
    """

    count: int
    labels: Tensor | None = None
    null_label: int | None = None
    augmentation: Tensor | None = None
    low_res: Tensor | None = None
    noise_level: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def null(self) -> "Condition":
        """Return the images without their condition (CFG's ∅); UsageError for a network trained without ∅."""
        if self.labels is None:
            raise UsageError("guidance needs class labels: the model is unconditional, so use guidance 0")
        if self.null_label is None:
            raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
        return replace(self, labels=torch.full_like(self.labels, self.null_label))

    def unlabelled(self) -> "Condition":
        """Return the same images for an unconditional network."""
        return replace(self, labels=None)

    @property
    def further(self) -> dict[str, Tensor]:
        """The inputs of a network by name, apart from the labels, that this condition has."""
        return {name: part for name in FURTHER if (part := getattr(self, name)) is not None}

    @property
    def _parts(self) -> dict[str, Tensor]:
        return self.further if self.labels is None else {"labels": self.labels, **self.further}

    def rows(self, index: slice | Tensor) -> "Condition":
        """Return the condition of some of the images; `index` is a slice or row numbers."""
        count = len(range(self.count)[index]) if isinstance(index, slice) else len(index)
        return self._replace_parts(count, {name: part[index] for name, part in self._parts.items()})

    def to(self, device: torch.device) -> "Condition":
        """Return the same on a device, without a synchronisation."""
        moved = {name: to_device(part, device) for name, part in self._parts.items()}
        return self._replace_parts(self.count, moved)

    def _replace_parts(self, count: int, parts: dict[str, Any]) -> "Condition":
        return replace(self, count=count, **parts)

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Return one condition of all the parts' images in order, which have the same inputs."""
        whole = {name: torch.cat([getattr(one, name) for one in parts]) for name in parts[0]._parts}
        return parts[0]._replace_parts(sum(map(len, parts)), whole)


FURTHER = ("augmentation", "low_res", "noise_level")  # inputs of a network by name, where it has them


class Prediction(NamedTuple):
    """A prediction for x_t, each (B, C, H, W): `x0` and `eps`, where x_t = α·x0 + σ·eps.

    `variance_fraction` is f of log Σ = f·log β + (1−f)·log β̃ (iDDPM eq. 15), None for a fixed variance.
    `mean_shift` is the gradient g by which a noisy step's mean moves, Σ·g (ADM alg. 1), None for no move.
    `gradient` is that of a call's loss for x_t, None for a call without one. `keeps_eps` (B,) is true for
    rows with an ε that is not that of x̂_0, and stays if x̂_0 is clipped; None for no such row.
    """

    x0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None
    mean_shift: Tensor | None = None
    gradient: Tensor | None = None
    keeps_eps: Tensor | None = None

    def rows(self, index: slice | Tensor) -> "Prediction":
        """Return the prediction for some of the images."""
        return Prediction(*(None if part is None else part[index] for part in self))  # type: ignore[arg-type]

    @staticmethod
    def cat(parts: Sequence["Prediction"]) -> "Prediction":
        """Return one prediction of all the parts' images in order; what one part lacks, all lack."""
        columns = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
        return Prediction(*columns)  # type: ignore[arg-type]


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, 1, 1) on `like`'s device and in its dtype, without a synchronisation.

    A single value () stays on the CPU, since it can be multiplied with a tensor of any device.
    """
    if values.ndim == 0:
        return values.to(like.dtype)
    return to_device(values.to(like.dtype), like.device).reshape(-1, *[1] * (like.ndim - 1))


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split an output of C or 2C channels into the prediction and f = (v+1)/2, None without v."""
    if output.shape[1] == channels:
        return output, None
    predicted, v = output.chunk(2, dim=1)
    return predicted, (v + 1) / 2


Denoiser = Callable[[Tensor, Tensor | float, Condition], Prediction]
"""(x (B, C, H, W), time of all or (B,) of each row, condition) → x_0 and ε. Guidance wraps one and is one."""


def time_tensor(t: Tensor | float) -> Tensor:
    """Return a time as a tensor: a real number as float64, a whole one as int64."""
    if isinstance(t, Tensor):
        return t
    return torch.tensor(t, dtype=torch.float64 if isinstance(t, float) else torch.int64)


def expand_times(t: Tensor | float, x: Tensor) -> Tensor:
    """Return the time of each row of x (B, …), (B,) on its device, without a synchronisation.

    Real times are in x's dtype. A single () time is on the CPU.
    """
    if isinstance(t, Tensor) and t.ndim:
        return to_device(t.to(x.dtype) if t.is_floating_point() else t, x.device)
    time = t.item() if isinstance(t, Tensor) else t
    return torch.full((len(x),), time, dtype=x.dtype if isinstance(time, float) else None, device=x.device)


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the means over f×f pixels of images (B, C, H, W) that are f times a size (h, w)."""
    return F.avg_pool2d(images, images.shape[2] // size[0])


def add_noise(low_res: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Return z + s·ε for low-resolution images (B, C, h, w), their levels (B,) and standard-normal ε."""
    return low_res + expand(level, low_res) * noise
