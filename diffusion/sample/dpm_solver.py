"""DPM-Solver++(2M), the multistep solver of order 2 for the probability-flow ODE (2211.01095, alg. 2).

With λ = log α/σ, a step from time s to t, h = λ_t − λ_s, is

    x_t = σ_t/σ_s · x_s − α_t (e^{−h} − 1) D,   D = (1 + 1/2r) x̂_0(x_s) − 1/2r · x̂_0(x_r),

where x̂_0(x_r) is the step before's and r its h divided by this one's. D = x̂_0(x_s) is order 1, which is
DDIM with η = 0. The step to the image, where λ is infinite, gives x̂_0 itself.

D is a straight line through two x̂_0, read half a step ahead, 1/2r times as far as they are apart. On a grid
of timesteps the last step that leaves noise is several times as long as the one before. So far ahead the line
means little and multiplies the network's errors, yet not to read it gives up what half of it would give.
So it is read by 1/4 + r/2 at most, which is less than 1/2r for r < 0.78: the order stays 2. (The paper's code
takes order 1 at its last step where there are fewer than 10. docs/library.md has what was tried.)
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
        """The walk from x."""
        earlier: tuple[Tensor, float] | None = None  # x̂_0 of the step before, and its h
        for done, step in enumerate(grid.walk(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            assert prediction is not None
            x0_hat = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
            if step.is_last:
                x = x0_hat
            else:
                h = step.log_snr_prev - step.log_snr
                data = _extrapolated(x0_hat, earlier, h)
                x = step.sigma_prev / step.sigma * x - step.alpha_prev * math.expm1(-h) * data
                earlier = x0_hat, h
            yield Step(done, len(grid), x, x0_hat)


def _extrapolated(x0_hat: Tensor, earlier: tuple[Tensor, float] | None, h: float) -> Tensor:
    """D of a step over h."""
    if earlier is None:
        return x0_hat
    before, h_before = earlier
    ahead = extrapolation_factor(h_before / h)
    return (1 + ahead) * x0_hat - ahead * before


def extrapolation_factor(r: float) -> float:
    """How far ahead the line is read, in distances of its two points: 1/2r, but at most 1/4 + r/2."""
    return min(1 / (2 * r), 0.25 + r / 2)


def build(settings: SampleSettings) -> DPMSolverMultistep:
    """The sampler of these settings."""
    return DPMSolverMultistep(settings.clip)
