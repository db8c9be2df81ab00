"""Heun's and Euler's methods in the noise level σ̄ = σ/α (Karras et al. 2022, 2206.00364, alg. 1).

A step follows the slope ε of x̄ = x/α from σ̄ to σ̄'. Heun's evaluates the slope there again and takes the mean
of both. The last step, to the image, is Euler's and gives x̂_0. Euler's method is DDIM with η = 0.

At α = 0, where a flow may begin, σ̄ is infinite. There Heun's rule applies to the straight path instead:
y = x/(α + σ) by σ/(α + σ), with the slope ε − x_0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, euler_step, slope_change
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory


@dataclass(frozen=True)
class Heun:
    """The solver, or Euler's without `correct`; `clip` clips x̂_0 to [−1, 1]."""

    correct: bool = True
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        steps = grid.walk()
        for done, step in enumerate(steps, start=1):
            prediction = yield DenoiserCall(x, step.t)
            assert prediction is not None
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            x = euler_step(step, x0_hat, eps)
            if self.correct and not step.is_last:
                after = yield DenoiserCall(x, steps[done].t)
                assert after is not None
                x0_after, eps_after = data_and_noise(after, x, step.alpha_prev, step.sigma_prev, self.clip)
                if math.isinf(step.log_snr):
                    x = x - step.alpha_prev * ((eps_after - x0_after) - (eps - x0_hat)) / 2
                else:
                    x = x + slope_change(step, (eps_after - eps) / 2)
            yield Step(done, len(steps), x, x0_hat)


def build(settings: SampleSettings) -> Heun:
    """Heun's method, of order 2."""
    return Heun(clip=settings.clip)


def build_euler(settings: SampleSettings) -> Heun:
    """Euler's method, of order 1."""
    return Heun(correct=False, clip=settings.clip)
