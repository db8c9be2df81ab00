"""UniPC (2302.04867): a multistep predictor of order 2 or 3 for x̂_0 in λ = log α/σ, and its corrector.

A step over h from x_s, with the predictions m_0 there and m_k at earlier times, at λ − λ_s = r_k·h, is

    x_t = σ_t/σ_s·x_s − α_t (e^{−h} − 1) m_0 − α_t B(h) Σ_k ρ_k (m_k − m_0)/r_k   (for x̂_0),

where B(h) is −h (bh1) or e^{−h} − 1 (bh2). The corrector repeats the step with the prediction at its own end,
r = 1. That raises the order by one, and the call is the next step's, so S steps are S calls.

As in the authors' code a single coefficient is ½, the order is at most the number of predictions, and it
falls to 2 and 1 in the last two steps. The last one, to the image, gives x̂_0, so its start is not corrected.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.samplers import UniPCOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, euler_step, phi
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory


class _Known(NamedTuple):
    """The prediction x̂_0 at a finite λ."""

    x0_hat: Tensor
    log_snr: float


@dataclass(frozen=True)
class UniPC:
    """The solver; `clip` clips x̂_0 to [−1, 1]. It draws no noise."""

    order: int = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        known: deque[_Known] = deque(maxlen=self.order)
        pending: tuple[GridStep, Tensor, Sequence[_Known]] | None = None  # a step that is not yet corrected
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            if step.is_last:
                x = x0_hat
            elif step.log_snr_prev > step.log_snr:  # else a repeated time
                if pending is not None:
                    x = self._step(*pending, end=_Known(x0_hat, step.log_snr))
                if math.isinf(step.log_snr):
                    x = euler_step(step, x0_hat, eps)
                else:
                    known.appendleft(_Known(x0_hat, step.log_snr))
                    used = list(known)[: min(self.order, len(grid) + 1 - done)]
                    pending = step, x, used
                    x = self._step(step, x, used)
            yield Step(done, len(grid), x, x0_hat)

    def _step(self, step: GridStep, x: Tensor, known: Sequence[_Known], end: _Known | None = None) -> Tensor:
        """Return x' after a step from x, with the prediction at its `end` the corrected one."""
        h, newest = step.log_snr_prev - step.log_snr, known[0]
        others = [*known[1:], *([end] if end else [])]
        ratios = [(other.log_snr - newest.log_snr) / h for other in others]
        b = -h if self.variant == "bh1" else math.expm1(-h)
        x = step.sigma_prev / step.sigma * x - step.alpha_prev * math.expm1(-h) * newest.x0_hat
        for factor, ratio, other in zip(_coefficients(ratios, h, b), ratios, others, strict=True):
            x = x - step.alpha_prev * b * factor / ratio * (other.x0_hat - newest.x0_hat)
        return x


def _coefficients(ratios: Sequence[float], h: float, b: float) -> list[float]:
    """Return the ρ_k: Σ_k ρ_k·r_k^(i−1) = −h·φ_{i+1}(−h)·i!/B(h) for i = 1, 2 …; ½ of a single one."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    rows = [[ratio**power for ratio in ratios] for power in range(len(ratios))]
    right = [-h * phi(i + 1, -h) * math.factorial(i) / b for i in range(1, len(ratios) + 1)]
    found: list[float] = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    ).tolist()
    return found


def build(settings: SampleSettings) -> UniPC:
    """Return the sampler of these settings."""
    options = UniPCOptions.model_validate(settings.sampler_options)
    return UniPC(options.order, options.variant, clip=settings.clip)
