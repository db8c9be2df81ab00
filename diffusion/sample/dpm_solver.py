"""DPM-Solver++(2M), the multistep solver of order 2 for the probability-flow ODE (2211.01095, alg. 2).

With λ = log α/σ, a step from time s to t, h = λ_t − λ_s, is

    x_t = σ_t/σ_s · x_s − α_t (e^{−h} − 1) D,   D = (1 + 1/2r) x̂_0(x_s) − 1/2r · x̂_0(x_r),

where x̂_0(x_r) is the step before's and r its h divided by this one's. D = x̂_0(x_s) is order 1, which is
DDIM with η = 0. The step to the image, where λ is infinite, gives x̂_0 itself.

D extrapolates linearly from two x̂_0 to half a step ahead, by 1/2r of their distance. On a grid of timesteps
the last noisy step is several times as long as the one before. So far ahead the extrapolation multiplies the
network's errors, but order 1 would lose accuracy. So the factor is at most 1/4 + r/2, which is less than 1/2r
for r < 0.78: the order stays 2. (The paper's code uses order 1 at the last of fewer than 10 steps.
docs/samplers.md has the measurements.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory


@dataclass(frozen=True)
class DPMSolverMultistep:
    """The solver; `clip` clips x̂_0 to [−1, 1]. It draws no noise."""

    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        earlier: tuple[Tensor, float] | None = None  # x̂_0 and h of the previous step
        for done, step in enumerate(grid.walk(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
            h = step.log_snr_prev - step.log_snr
            if step.is_last:
                x = x0_hat
            elif h > 0:  # 0 at a repeated time
                data = _extrapolated(x0_hat, earlier, h)
                x = step.sigma_prev / step.sigma * x - step.alpha_prev * math.expm1(-h) * data
                earlier = x0_hat, h
            yield Step(done, len(grid), x, x0_hat)


def _extrapolated(x0_hat: Tensor, earlier: tuple[Tensor, float] | None, h: float) -> Tensor:
    """Return D of a step over h."""
    if earlier is None:
        return x0_hat
    before, h_before = earlier
    ahead = extrapolation_factor(h_before / h)
    return (1 + ahead) * x0_hat - ahead * before


def extrapolation_factor(r: float) -> float:
    """Return the factor of extrapolation: 1/2r, but at most 1/4 + r/2."""
    return min(1 / (2 * r), 0.25 + r / 2)


def build(settings: SampleSettings) -> DPMSolverMultistep:
    """Return the sampler of these settings."""
    return DPMSolverMultistep(settings.clip)
