"""DPS (Chung et al. 2022, 2209.14687): each step moves down the gradient of ‖y − A·x̂_0(x_t)‖.

    x' = the reverse step with η − ζ·∇_x ‖y − A·x̂_0(x_t)‖

The paper has α² + σ² = 1. With c = 1/√(α² + σ²), c·x is the paper's image, so that the move of x' is
ζ/(c·c') times the gradient for x: a process's scale changes no result.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from diffusion.edit.method import operator_of
from diffusion.edit.operators import Mask, Measurement
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.edits import DPSOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample import ddim
from diffusion.sample.sampler import DenoiserCall, Sampler, Step, Trajectory

ZETA_OF_MASKS, ZETA = 0.5, 0.3  # app. D.1: inpainting; super-resolution and deblurring
TINY = 1e-12  # keeps the gradient of a norm finite at 0


def build(
    settings: SampleSettings, options: DPSOptions, measurement: Measurement, process: NoiseProcess
) -> Sampler:
    """Return the method; a call returns the gradient for x, which costs a backward pass."""
    operator, y = operator_of(measurement), measurement.y
    zeta = options.zeta or (ZETA_OF_MASKS if isinstance(operator, Mask) else ZETA)
    ancestral = replace(ddim.build(settings), eta=options.eta, noise="small")

    def distance(x0_hat: Tensor) -> Tensor:
        return ((y - operator.apply(x0_hat)).square().flatten(1).sum(1) + TINY**2).sqrt()

    def sampler(grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t, distance)
            assert prediction.gradient is not None, (
                "the driver answers a call that has a loss with a gradient"
            )
            z = noise() if options.eta and not step.is_last else None
            x, x0_hat = ancestral.step(step, x, prediction, z)
            scale = math.hypot(step.alpha, step.sigma) * math.hypot(step.alpha_prev, step.sigma_prev)
            x = x - zeta * scale * prediction.gradient
            yield Step(done, len(grid), x, x0_hat)

    return sampler
