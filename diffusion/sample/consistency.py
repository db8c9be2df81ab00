"""Multistep consistency sampling (2303.01469, alg. 1), for models tuned by the loss `consistency`.

Each call gives x̂_0, the end of the flow from x_t. After all but the last call new noise is added at the next
time: x' = α'·x̂_0 + σ'·z. So one call samples already, and further calls correct its errors. In two steps the
second time has the noise level `sigma_mid`: 0.821 for σ_data 0.5 (ECT, 2406.14548). In more steps, and where
they are listed or learned, the times are those of the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.process.time_grid import NoisePoint, TimeGrid
from diffusion.protocol.samplers import ConsistencySamplerOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory
from diffusion.system.errors import UsageError


@dataclass(frozen=True)
class ConsistencySampler:
    """The sampler; `clip` clips x̂_0 to [−1, 1]."""

    sigma_mid: float | None = 0.821
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x; UsageError, at its start, if it begins below `sigma_mid`."""
        points = self._points(grid)
        for done, point in enumerate(points, start=1):
            prediction = yield DenoiserCall(x, point.t)
            x0_hat = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
            x = x0_hat
            if done < len(points):
                x = points[done].alpha * x0_hat + points[done].sigma * noise()
            yield Step(done, len(points), x, x0_hat)

    def _points(self, grid: TimeGrid) -> list[NoisePoint]:
        points = [NoisePoint(step.t, step.alpha, step.sigma) for step in grid.reverse_steps()]
        if grid.steps == len(points) == 2 and self.sigma_mid is not None and grid.locate is not None:
            first = points[0].sigma / points[0].alpha if points[0].alpha else float("inf")
            if self.sigma_mid >= first:
                raise UsageError(
                    f"sampler_options.sigma_mid {self.sigma_mid:g} is not below the first noise level "
                    f"{first:g}: lower it, or begin at a higher one"
                )
            points[1] = grid.locate(self.sigma_mid)
        return points


def build(settings: SampleSettings) -> ConsistencySampler:
    """Return the sampler of these settings."""
    options = ConsistencySamplerOptions.model_validate(settings.sampler_options)
    has_own_times = settings.timesteps is not None or settings.spacing == LEARNED
    return ConsistencySampler(None if has_own_times else options.sigma_mid, settings.clip)
