"""DPM-Solver++(2M), the multistep solver of order 2 for the probability-flow ODE (2211.01095, alg. 2).

With λ = log α/σ, a step from time s to t, h = λ_t − λ_s, is

    x_t = σ_t/σ_s · x_s − α_t (e^{−h} − 1) D,   D = (1 + 1/2r) x̂_0(x_s) − 1/2r · x̂_0(x_r),

where x̂_0(x_r) is the step before's and r its h divided by this one's. D = x̂_0(x_s) is order 1, which is
DDIM with η = 0. The step to the image, where λ is infinite, gives x̂_0 itself.

D is a straight line through two x̂_0, read half a step ahead. On a grid of timesteps the last step that
leaves noise is several times as long as the one before: so far ahead, the line multiplies the network's
errors. Such a step is of order 1. (The paper's code does so for the last step alone, and of fewer than 15.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import Grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import Ask, Step, Walk

FARTHEST = 2.0  # times the step before's h: the line is read no farther ahead than its points are apart


@dataclass(frozen=True)
class Multistep:
    """The solver; `clip` clips x̂_0 to [−1, 1]. It draws no noise."""

    clip: bool = True

    def __call__(self, grid: Grid, x: Tensor, noise: Callable[[], Tensor]) -> Walk:
        """The walk from x."""
        earlier: tuple[Tensor, float] | None = None  # x̂_0 of the step before, and its h
        for done, step in enumerate(grid.walk(), start=1):
            prediction = yield Ask(x, step.t)
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
    r = h_before / h
    if FARTHEST * r < 1:
        return x0_hat
    return (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * before


def build(settings: SampleSettings) -> Multistep:
    """The sampler of these settings."""
    return Multistep(settings.clip)
