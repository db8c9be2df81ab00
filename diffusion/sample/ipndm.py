"""iPNDM (2204.13902, improved pseudo numerical methods): Adams–Bashforth of orders 1 to 4, on ε in σ̄ = σ/α.

The slope of a step is a combination of ε at this time and at those before it, with the coefficients of equal
steps. So on other grids the order is 1, but no ratio of steps amplifies the network's errors. The first steps
have fewer predictions, hence a lower order. The last step gives x̂_0.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import MAX_ADAMS_ORDER, IPNDMOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, euler_step, slope_change
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""By order: the factors of the slopes, the newest first."""


@dataclass(frozen=True)
class IPNDM:
    """The solver of an `order`; `clip` clips x̂_0 to [−1, 1]. It draws no noise."""

    order: int = MAX_ADAMS_ORDER
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        slopes: deque[Tensor] = deque(maxlen=self.order)
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            slopes.appendleft(eps)
            x = euler_step(step, x0_hat, eps)
            if len(slopes) > 1 and not step.is_last:
                x = x + slope_change(step, _adams_slope(slopes) - eps)
            yield Step(done, len(grid), x, x0_hat)


def _adams_slope(slopes: deque[Tensor]) -> Tensor:
    factors = ADAMS_BASHFORTH[len(slopes) - 1]
    total = factors[0] * slopes[0]
    for factor, slope in zip(factors[1:], list(slopes)[1:], strict=True):
        total = total + factor * slope
    return total


def build(settings: SampleSettings) -> IPNDM:
    """Return the sampler of these settings."""
    return IPNDM(IPNDMOptions.model_validate(settings.sampler_options).order, settings.clip)
