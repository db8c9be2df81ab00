"""The forward process: betas, alphas_cumprod, q_sample and its inverse, and the spacings of sampling.

Timesteps are t = 0 … T−1. Tables are float64 and are cast once, where they meet the image.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from diffusion.errors import UsageError
from diffusion.settings import Spacing


def linear_betas(timesteps: int) -> Tensor:
    """(T,) float64 betas of DDPM (2006.11239, sec. 4), scaled by 1000/T as iDDPM's code does for other T."""
    scale = 1000 / timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(timesteps: int) -> Tensor:
    """(T,) float64 betas of iDDPM (2102.09672, eq. 17), at most 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - alpha_bar((t + 1) / timesteps) / alpha_bar(t / timesteps) for t in range(timesteps)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a forward process over the network's `timesteps` (S,), increasing original steps.

    `alphas_cumprod` (S,) float64 is ᾱ at those steps. A spaced process is another Schedule with fewer
    timesteps; all other tables are recomputed along them (iDDPM sec. 4).
    """

    timesteps: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def named(cls, name: str, timesteps: int) -> Self:
        """The full process of T steps with the `linear` or `cosine` betas."""
        return cls(torch.arange(timesteps), torch.cumprod(1 - BETAS[name](timesteps), dim=0))

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """ᾱ one step earlier along the timesteps; exactly 1 for the last step taken."""
        return torch.cat([torch.ones_like(self.alphas_cumprod[:1]), self.alphas_cumprod[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        """β along the timesteps, 1 − ᾱ/ᾱ_prev."""
        return 1 - self.alphas_cumprod / self.alphas_cumprod_prev

    @cached_property
    def posterior_variance(self) -> Tensor:
        """β̃ = (1−ᾱ_prev)/(1−ᾱ)·β (DDPM eq. 7); 0 for the last step taken."""
        return (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod) * self.betas

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """log β̃ with its infinite first entry replaced by the second (iDDPM), or by log β when S = 1."""
        first = self.posterior_variance[1:2] if len(self) > 1 else self.betas[:1]
        return torch.cat([first, self.posterior_variance[1:]]).log()

    def to(self, device: torch.device) -> "Schedule":
        """The same process with its tables on the device, so that looking one up waits for nothing."""
        return Schedule(self.timesteps.to(device), self.alphas_cumprod.to(device))

    def spaced(self, timesteps: Sequence[int]) -> "Schedule":
        """The process along some of the timesteps; the network still sees the original ones."""
        chosen = torch.as_tensor(timesteps)
        return Schedule(self.timesteps[chosen], self.alphas_cumprod[chosen])

    def largest_eta(self) -> float:
        """The largest η for which 1 − ᾱ_prev − η²β̃ ≥ 0 at every step (DDIM eq. 12); at least 1."""
        if len(self) == 1:
            return math.inf
        return float(((1 - self.alphas_cumprod[1:]) / self.betas[1:]).min().sqrt())

    def eta_limit(self) -> str:
        """`largest_eta` for a refusal: to 4 decimals, rounded down, so that it is not refused itself."""
        largest = self.largest_eta()
        return str(
            largest if math.isinf(largest) else Decimal(largest).quantize(Decimal("1e-4"), ROUND_FLOOR)
        )


def at(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """`table` at the (B,) indices, as (B, 1, 1, 1) on `like`'s device and in its dtype."""
    return table[index.to(table.device)].to(like).reshape(-1, *[1] * (like.ndim - 1))


def q_sample(schedule: Schedule, x_0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (DDPM eq. 4). `index` (B,) counts along the schedule's own steps."""
    alpha_bar = schedule.alphas_cumprod
    return at(alpha_bar.sqrt(), index, x_0) * x_0 + at((1 - alpha_bar).sqrt(), index, x_0) * noise


def predict_x0(schedule: Schedule, x_t: Tensor, index: Tensor, eps: Tensor) -> Tensor:
    """x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t: q_sample's inverse for a known ε."""
    alpha_bar = schedule.alphas_cumprod
    return (x_t - at((1 - alpha_bar).sqrt(), index, x_t) * eps) / at(alpha_bar.sqrt(), index, x_t)


def predict_eps(schedule: Schedule, x_t: Tensor, index: Tensor, x_0: Tensor) -> Tensor:
    """ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t): q_sample's inverse for a known x_0."""
    alpha_bar = schedule.alphas_cumprod
    return (x_t - at(alpha_bar.sqrt(), index, x_t) * x_0) / at((1 - alpha_bar).sqrt(), index, x_t)


def velocity(schedule: Schedule, x_0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """√ᾱ_t ε − √(1−ᾱ_t) x_0: where x_t moves as the noise grows (Salimans & Ho 2022, 2202.00512, app. D)."""
    alpha_bar = schedule.alphas_cumprod
    return at(alpha_bar.sqrt(), index, x_0) * noise - at((1 - alpha_bar).sqrt(), index, x_0) * x_0


def velocity_to_eps(schedule: Schedule, x_t: Tensor, index: Tensor, velocity: Tensor) -> Tensor:
    """ε = √ᾱ_t v + √(1−ᾱ_t) x_t, for the velocity v."""
    alpha_bar = schedule.alphas_cumprod
    return at(alpha_bar.sqrt(), index, x_t) * velocity + at((1 - alpha_bar).sqrt(), index, x_t) * x_t


def velocity_to_x0(schedule: Schedule, x_t: Tensor, index: Tensor, velocity: Tensor) -> Tensor:
    """x̂_0 = √ᾱ_t x_t − √(1−ᾱ_t) v, for the velocity v."""
    alpha_bar = schedule.alphas_cumprod
    return at(alpha_bar.sqrt(), index, x_t) * x_t - at((1 - alpha_bar).sqrt(), index, x_t) * velocity


def spaced_timesteps(spacing: Spacing, steps: int, timesteps: int) -> list[int]:
    """Exactly `steps` distinct increasing timesteps of 0 … T−1 that end at T−1.

    `uniform` is evenly spread with both ends (DDIM sec. 5, linear); `quadratic` is dense at small t
    (DDIM app. D.3); `trailing` counts back from T−1 by T/S. UsageError unless 1 ≤ S ≤ T.
    """
    if not 1 <= steps <= timesteps:
        raise UsageError(f"{steps} sampling steps do not fit: give 1 to {timesteps}, the model's timesteps")
    if steps == 1:
        return [timesteps - 1]
    last, gaps = timesteps - 1, steps - 1
    if spacing == "uniform":  # i·last/gaps, rounded half up in whole numbers
        return [(2 * i * last + gaps) // (2 * gaps) for i in range(steps)]
    if spacing == "trailing":
        return [(2 * (i + 1) * timesteps + steps) // (2 * steps) - 1 for i in range(steps)]
    chosen: list[int] = []
    for i in range(steps):  # near 0 squares round to the same step: each takes at least the next free one
        raw = round(last * (i / gaps) ** 2)
        chosen.append(min(max(raw, chosen[-1] + 1 if chosen else 0), last - (gaps - i)))
    return chosen


def check_timesteps(chosen: Sequence[int], timesteps: int) -> list[int]:
    """An explicit list of timesteps; UsageError unless it increases within 0 … T−1 and ends at T−1."""
    if not chosen or any(a >= b for a, b in itertools.pairwise(chosen)):
        raise UsageError(f"timesteps must increase strictly, got {list(chosen)}")
    if chosen[0] < 0 or chosen[-1] != timesteps - 1:
        raise UsageError(f"timesteps must lie in 0 … {timesteps - 1} and end there, got {list(chosen)}")
    return list(chosen)
