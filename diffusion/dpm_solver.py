"""DPM-Solver++(2M), the multistep solver of order 2 for the probability-flow ODE (2211.01095, alg. 2).

With α = √ᾱ, σ = √(1−ᾱ) and λ = log α/σ, a step from timestep s to t, h = λ_t − λ_s, is

    x_t = σ_t/σ_s · x_s − α_t (e^{−h} − 1) D,   D = (1 + 1/2r) x̂_0(x_s) − 1/2r · x̂_0(x_r),

where x̂_0(x_r) is the step before's and r its h divided by this one's. D = x̂_0(x_s) is order 1, which is
DDIM with η = 0.

D is a straight line through two x̂_0, read half a step ahead. On a grid of timesteps the last step that
leaves noise is several times as long as the one before: so far ahead, the line multiplies the network's
errors. Such a step is of order 1. (The paper's code does so for the last step alone, and of fewer than 15.)
"""

import torch
from torch import Tensor

from diffusion.schedule import Schedule, predict_x0

FARTHEST = 2.0  # times the step before's h: the line is read no farther ahead than its points are apart


class Multistep:
    """The solver's memory along one walk: call it at every timestep, from the last to the first."""

    def __init__(self, schedule: Schedule, clip: bool) -> None:
        self._schedule, self._clip = schedule, clip
        self._alpha = schedule.alphas_cumprod.sqrt()
        self._sigma = (1 - schedule.alphas_cumprod).sqrt()
        self._lambda = (self._alpha / self._sigma).log()
        self._earlier: Tensor | None = None

    def __call__(self, x: Tensor, index: Tensor, eps: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step from timestep `index` (B,), equal for all; returns (x one timestep earlier, x̂_0).

        `v` is not used. The step to ᾱ = 1, where λ is infinite, gives x̂_0 itself.
        """
        i = int(index[0])
        x0_hat = predict_x0(self._schedule, x, index, eps)
        if self._clip:
            x0_hat = x0_hat.clamp(-1, 1)
        if i == 0:
            return x0_hat, x0_hat
        h = self._lambda[i - 1] - self._lambda[i]
        x = float(self._sigma[i - 1] / self._sigma[i]) * x - float(
            self._alpha[i - 1] * torch.expm1(-h)
        ) * self._data(x0_hat, i, float(h))
        self._earlier = x0_hat
        return x, x0_hat

    def _data(self, x0_hat: Tensor, i: int, h: float) -> Tensor:
        """D of the step from index i over h."""
        if self._earlier is None:
            return x0_hat
        r = float(self._lambda[i] - self._lambda[i + 1]) / h
        if FARTHEST * r < 1:
            return x0_hat
        return (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * self._earlier
