"""Euler's and Heun's methods in the noise level σ̄ = σ/α, with churn or ancestral noise.

A step may first raise the noise level from σ̄ to σ̄(1 + γ) by adding noise (churn). Then it follows the slope
ε of x̄ = x/α down to σ̄'. Heun's evaluates the slope there again and takes the mean of both. The last step, to
the image, is Euler's and gives x̂_0. This is alg. 2 of Karras et al. (2022, 2206.00364). Without churn these
are EDM's alg. 1, and Euler's method is DDIM with η = 0.

On the `straight` path the mean is that of the slope ε − x_0 of y = x/(α + σ) by σ/(α + σ) instead, as flows
have it. Both have order 2. Long steps from large noise need it, since there they multiply a small change of
ε by σ̄. At α = 0, where a flow may begin, σ̄ is infinite and the path is straight in any case.

A step with ancestral noise (k-diffusion's `sample_euler_ancestral`) goes down to σ̄_down and adds noise of
deviation σ̄_up:

    σ̄_up = η·σ̄'·√(1 − σ̄'²/σ̄²),   σ̄_down = √(σ̄'² − σ̄_up²).

With `s_noise` 1 this is DDIM with that η and small noise (DDIM eq. 12, 16).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from diffusion.process.time_grid import GridStep, NoisePoint, TimeGrid
from diffusion.protocol.samplers import ChurnOptions, HeunOptions, SDEOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, euler_step, noise_level
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory

MAX_GAMMA = math.sqrt(2) - 1  # EDM alg. 2, line 3


@dataclass(frozen=True)
class Heun:
    """The solver, or Euler's without `correct`. Without churn it draws no noise.

    `clip` clips x̂_0 to [−1, 1].
    """

    correct: bool = True
    straight: bool = False
    churn: ChurnOptions = field(default_factory=ChurnOptions)
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        steps = grid.reverse_steps()
        for done, step in enumerate(steps, start=1):
            start, x = self._churned(grid, step, x, noise)
            prediction = yield DenoiserCall(x, start.t)
            x0_hat, eps = data_and_noise(prediction, x, start.alpha, start.sigma, self.clip)
            x = euler_step(step, x0_hat, eps)
            if self.correct and not step.is_last:
                after = yield DenoiserCall(x, steps[done].t)
                x0_after, eps_after = data_and_noise(after, x, step.alpha_prev, step.sigma_prev, self.clip)
                if self.straight or start.alpha == 0:
                    weight, weight_prev = start.alpha + start.sigma, step.alpha_prev + step.sigma_prev
                    span = step.sigma_prev - weight_prev * start.sigma / weight
                    x = x + span * ((eps_after - x0_after) - (eps - x0_hat)) / 2
                else:
                    span = step.sigma_prev - step.alpha_prev * start.sigma / start.alpha
                    x = x + span * (eps_after - eps) / 2
            yield Step(done, len(steps), x, x0_hat)

    def _churned(
        self, grid: TimeGrid, step: GridStep, x: Tensor, noise: Callable[[], Tensor]
    ) -> tuple[NoisePoint, Tensor]:
        """Return where the step starts and x there: at its own time, or at a higher noise level.

        That level is at most the process's largest.
        """
        level, churn = noise_level(step.log_snr), self.churn
        gamma = min(churn.s_churn / grid.steps, MAX_GAMMA) if churn.s_tmin <= level <= churn.s_tmax else 0.0
        if gamma == 0:
            return NoisePoint(step.t, step.alpha, step.sigma), x
        assert grid.locate is not None, "the grid of a process has every noise level"
        start = grid.locate(level * (1 + gamma))
        added = math.sqrt(max(0.0, (start.sigma / start.alpha) ** 2 - level**2))
        return start, start.alpha * (x / step.alpha + added * churn.s_noise * noise())


@dataclass(frozen=True)
class EulerAncestral:
    """Euler's method with ancestral noise; `clip` clips x̂_0 to [−1, 1]. With `eta` 0 it draws no noise."""

    eta: float = 1.0
    s_noise: float = 1.0
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            level, after = noise_level(step.log_snr), noise_level(step.log_snr_prev)
            up = self.eta * after * math.sqrt(max(0.0, 1 - (after / level) ** 2))
            down = math.sqrt(max(0.0, after**2 - up**2))
            x = step.alpha_prev * (x0_hat + down * eps)
            if up > 0:
                x = x + step.alpha_prev * up * self.s_noise * noise()
            yield Step(done, len(grid), x, x0_hat)


def build_heun(settings: SampleSettings) -> Heun:
    """Heun's method, of order 2, with churn."""
    options = HeunOptions.model_validate(settings.sampler_options)
    return Heun(True, options.path == "straight", options, settings.clip)


def build_euler(settings: SampleSettings) -> Heun:
    """Euler's method, of order 1, with churn."""
    return Heun(False, churn=ChurnOptions.model_validate(settings.sampler_options), clip=settings.clip)


def build_ancestral(settings: SampleSettings) -> EulerAncestral:
    """Euler's method with ancestral noise."""
    options = SDEOptions.model_validate(settings.sampler_options)
    return EulerAncestral(options.eta, options.s_noise, settings.clip)
