"""Euler's method with ancestral noise, in the noise level σ̄ = σ/α (k-diffusion's `sample_euler_ancestral`).

A step from σ̄ to σ̄' goes down to σ̄_down and adds noise of deviation σ̄_up:

    σ̄_up = η·σ̄'·√(1 − σ̄'²/σ̄²),   σ̄_down = √(σ̄'² − σ̄_up²).

With `s_noise` 1 this is DDIM with that η and small noise (DDIM eq. 12, 16). The last step gives x̂_0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.sampler_options import SDEOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, noise_level
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory


@dataclass(frozen=True)
class EulerAncestral:
    """The sampler; `clip` clips x̂_0 to [−1, 1]. With `eta` 0 it draws no noise."""

    eta: float = 1.0
    s_noise: float = 1.0
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        for done, step in enumerate(grid.walk(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            down, up = ancestral_levels(step, self.eta)
            x = step.alpha_prev * (x0_hat + down * eps)
            if up > 0:
                x = x + step.alpha_prev * up * self.s_noise * noise()
            yield Step(done, len(grid), x, x0_hat)


def ancestral_levels(step: GridStep, eta: float) -> tuple[float, float]:
    """Return σ̄_down and σ̄_up of a step."""
    start, end = noise_level(step.log_snr), noise_level(step.log_snr_prev)
    up = eta * end * math.sqrt(max(0.0, 1 - (end / start) ** 2))
    return math.sqrt(max(0.0, end**2 - up**2)), up


def build(settings: SampleSettings) -> EulerAncestral:
    """Return the sampler of these settings."""
    options = SDEOptions.model_validate(settings.sampler_options)
    return EulerAncestral(options.eta, options.s_noise, settings.clip)
