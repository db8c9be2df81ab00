"""The times of a sampler's steps, and the tables of a process at them (iDDPM sec. 4, for any spacing).

Every table is float64 and (S,); it is cast once, where it meets the image. With α, σ of a time t and α', σ'
of the time before it on the grid, q(x_t | x_t') = N(α/α'·x_t', β), β = σ² − (α/α')²σ'², and the posterior
q(x_t' | x_t, x_0) has the variance β̃ = β·σ'²/σ². Where α² + σ² = 1, these are DDPM's with ᾱ = α².
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class NoisePoint(NamedTuple):
    """A real time with its α and σ."""

    t: float
    alpha: float
    sigma: float


class GridStep(NamedTuple):
    """A step as plain numbers: from time `t` to the one before it on the grid, or to the image.

    `alpha_prev` and `sigma_prev` of the step to the image are 1 and 0; `log_snr` is λ = log α/σ, ∞ there.
    """

    t: int | float
    alpha: float
    sigma: float
    log_snr: float
    alpha_prev: float
    sigma_prev: float
    log_snr_prev: float
    beta: float
    posterior_variance: float
    log_beta: float
    log_posterior_variance: float

    @property
    def is_last(self) -> bool:
        """Whether the step ends at the image itself."""
        return self.sigma_prev == 0


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """`times` (S,), not decreasing, the network's input; `alpha` and `sigma` (S,) float64 at them.

    `locate` returns the point at a noise level σ/α between the times, for samplers that leave the grid.
    `full_length` is the number of times of the full grid, if this is only its first part.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    locate: Callable[[float], NoisePoint] | None = None
    full_length: int | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def steps(self) -> int:
        """The number of steps S that the settings name."""
        return self.full_length or len(self)

    @cached_property
    def log_snr(self) -> Tensor:
        """λ = log α/σ, half the logarithm of the signal-to-noise ratio; it falls along the grid."""
        return (self.alpha / self.sigma).log()

    @cached_property
    def alpha_prev(self) -> Tensor:
        """α one time earlier; exactly 1 for the last step taken, which ends at the image."""
        return torch.cat([torch.ones_like(self.alpha[:1]), self.alpha[:-1]])

    @cached_property
    def sigma_prev(self) -> Tensor:
        """σ one time earlier; exactly 0 for the last step taken."""
        return torch.cat([torch.zeros_like(self.sigma[:1]), self.sigma[:-1]])

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ = α²."""
        return self.alpha.square()

    @cached_property
    def betas(self) -> Tensor:
        """β = σ² − (α/α')²σ'² = σ²(1 − exp 2(λ − λ')) of each step."""
        return -self.sigma.square() * torch.expm1(2 * (self.log_snr - _shifted(self.log_snr)))

    @cached_property
    def posterior_variance(self) -> Tensor:
        """β̃ = β·σ'²/σ² (DDPM eq. 7); 0 for the last step taken."""
        return self.sigma_prev.square() / self.sigma.square() * self.betas

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """log β̃ with its infinite first entry replaced by the second (iDDPM), or by log β when S = 1."""
        first = self.posterior_variance[1:2] if len(self) > 1 else self.betas[:1]
        return torch.cat([first, self.posterior_variance[1:]]).log()

    @property
    def initial_noise_scale(self) -> float:
        """The factor of standard-normal noise at the last time, where sampling begins.

        A variance-preserving process begins at N(0, I) (DDPM), another one at N(0, σ²·I) (EDM alg. 1).
        """
        alpha, sigma = float(self.alpha[-1]), float(self.sigma[-1])
        return 1.0 if abs(alpha**2 + sigma**2 - 1) < 1e-9 else sigma

    def reverse_steps(self) -> list[GridStep]:
        """Return the steps from the last time to the image, in the order that they are taken."""
        columns = (
            self.alpha, self.sigma, self.log_snr, self.alpha_prev, self.sigma_prev, _shifted(self.log_snr),
            self.betas, self.posterior_variance, self.betas.log(), self.posterior_log_variance_clipped,
        )  # fmt: skip
        rows = zip(self.times.tolist(), *(column.tolist() for column in columns), strict=True)
        return [GridStep(*row) for row in rows][::-1]


def _shifted(log_snr: Tensor) -> Tensor:
    """Return λ one time earlier; ∞ at the image."""
    return torch.cat([torch.full_like(log_snr[:1], torch.inf), log_snr[:-1]])
