"""DPM-Solver++ (2211.01095): multistep solvers of order 2 for the probability-flow ODE, and with noise.

With λ = log α/σ, a step of 2M (alg. 2) from time s to t, h = λ_t − λ_s, is

    x_t = σ_t/σ_s · x_s − α_t (e^{−h} − 1) D,   D = (1 + 1/2r) x̂_0(x_s) − 1/2r · x̂_0(x_r),

where x̂_0(x_r) is the step before's and r its h divided by this one's. D = x̂_0(x_s) is order 1, which is
DDIM with η = 0. The step to the image, where λ is infinite, gives x̂_0 itself.

D extrapolates linearly from two x̂_0 to half a step ahead, by 1/2r of their distance. On a grid of timesteps
the last noisy step is several times as long as the one before. So far ahead the extrapolation multiplies the
network's errors, but order 1 would lose accuracy. So the factor is at most 1/4 + r/2, which is less than 1/2r
for r < 0.78: the order stays 2. (The paper's code uses order 1 at the last of fewer than 10 steps.
docs/samplers.md has the measurements.)

2M and 3M SDE are k-diffusion's, from two or three predictions. With k = (1 + η)h and the divided differences
D_1, D_2 of x̂_0, a step is

    x_t = σ_t/σ_s·e^{−ηh}·x_s + α_t((1 − e^{−k}) x̂_0 + A·h·D_1 + B·h²·D_2) + σ_t √(1 − e^{−2ηh})·z

2M SDE has A = (1 − e^{−k})/2, the midpoint rule, and B = 0. 3M SDE has A = k·φ_2(−k) and B = k·φ_3(−k), as
published: Taylor's B is twice that, so its order is 2 too, with a smaller error. With η = 0 no noise is
drawn. The first steps have fewer predictions, and the last one gives x̂_0.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.samplers import SDEOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ode_step import data_and_noise, euler_step, phi
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory


class _Earlier(NamedTuple):
    """The x̂_0 of an earlier step, and the length h of that step."""

    x0_hat: Tensor
    h: float


@dataclass(frozen=True)
class DPMSolverMultistep:
    """The solver 2M; `clip` clips x̂_0 to [−1, 1]. It draws no noise."""

    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        earlier: _Earlier | None = None
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
            h = step.log_snr_prev - step.log_snr
            if step.is_last:
                x = x0_hat
            elif h > 0:  # 0 at a repeated time
                data = x0_hat
                if earlier is not None:
                    r = earlier.h / h
                    ahead = min(1 / (2 * r), 0.25 + r / 2)
                    data = (1 + ahead) * x0_hat - ahead * earlier.x0_hat
                x = step.sigma_prev / step.sigma * x - step.alpha_prev * math.expm1(-h) * data
                earlier = _Earlier(x0_hat, h)
            yield Step(done, len(grid), x, x0_hat)


@dataclass(frozen=True)
class DPMSolverSDE:
    """The solver from `order` predictions, 2 or 3, without noise for `eta` 0; `clip` clips x̂_0 to [−1, 1]."""

    order: int
    eta: float = 1.0
    s_noise: float = 1.0
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x."""
        earlier: deque[_Earlier] = deque(maxlen=self.order - 1)
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat, eps = data_and_noise(prediction, x, step.alpha, step.sigma, self.clip)
            h = step.log_snr_prev - step.log_snr
            if step.is_last:
                x = x0_hat
            elif math.isinf(h) and self.eta == 0:
                x = euler_step(step, x0_hat, eps)
            elif math.isinf(h):  # from α = 0 all noise is new
                x = step.alpha_prev * x0_hat + self._noise(step, h, noise)
            elif h > 0:  # 0 at a repeated time
                x = self._step(step, x, x0_hat, h, earlier)
                x = x + self._noise(step, h, noise) if self.eta > 0 else x
                earlier.appendleft(_Earlier(x0_hat, h))
            yield Step(done, len(grid), x, x0_hat)

    def _step(self, step: GridStep, x: Tensor, x0_hat: Tensor, h: float, earlier: deque[_Earlier]) -> Tensor:
        """Return x' without the step's noise."""
        k = (1 + self.eta) * h
        x = step.sigma_prev / step.sigma * math.exp(-self.eta * h) * x
        x = x - step.alpha_prev * math.expm1(-k) * x0_hat
        if not earlier:
            return x
        first = h / earlier[0].h * (x0_hat - earlier[0].x0_hat)
        if self.order == 2:
            return x - step.alpha_prev * math.expm1(-k) / 2 * first
        if len(earlier) < 2:
            return x + step.alpha_prev * k * phi(2, -k) * first
        second = h / earlier[1].h * (earlier[0].x0_hat - earlier[1].x0_hat)
        r0, r1 = earlier[0].h / h, earlier[1].h / h
        curvature = (first - second) / (r0 + r1)
        return x + step.alpha_prev * k * (phi(2, -k) * (first + r0 * curvature) + phi(3, -k) * curvature)

    def _noise(self, step: GridStep, h: float, noise: Callable[[], Tensor]) -> Tensor:
        deviation = step.sigma_prev * math.sqrt(-math.expm1(-2 * self.eta * h))
        return deviation * self.s_noise * noise()


def build(settings: SampleSettings) -> DPMSolverMultistep:
    """DPM-Solver++ 2M, of order 2, without noise."""
    return DPMSolverMultistep(settings.clip)


def build_2m_sde(settings: SampleSettings, order: int = 2) -> DPMSolverSDE:
    """DPM-Solver++ SDE from two predictions."""
    options = SDEOptions.model_validate(settings.sampler_options)
    return DPMSolverSDE(order, options.eta, options.s_noise, settings.clip)


def build_3m_sde(settings: SampleSettings) -> DPMSolverSDE:
    """DPM-Solver++ SDE from three predictions; its order is 2 as well."""
    return build_2m_sde(settings, order=3)
