"""DDNM's own step (Wang et al. 2022, 2212.00490): x̂_0 with the measurement y, the network's ε, new noise.

    x̂_0 ← x̂_0 − A⁺(A·x̂_0 − y),   x' = α'·x̂_0 + σ'·(√(1 − η²)·ε + η·z)

With noise σ_y (alg. 3, app. I) the correction of the direction with singular value s is scaled by λ, and its
noise is Φ·z without ε, so that x' has the noise σ' in all directions:

    λ = 1,                          Φ² = σ'² − (α'·σ_y/s)²   where σ' ≥ α'·σ_y/s
    λ = s·σ'·√(1 − η²)/(α'·σ_y),    Φ = σ'·η                 else

The ε is that of the network and not recomputed from the changed x̂_0, as the authors' code has it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.edit.method import operator_of, travelled
from diffusion.edit.operators import Measurement
from diffusion.process.denoiser import Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.edits import DDNMOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import Sampler, Trajectory


def build(
    settings: SampleSettings, options: DDNMOptions, measurement: Measurement, process: NoiseProcess
) -> Sampler:
    """Return the method, which clips x̂_0 before it is projected."""
    operator, y, sigma_y, eta = operator_of(measurement), measurement.y, measurement.sigma, options.eta
    kept = math.sqrt(1 - eta**2)

    def sampler(grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        def reverse(step: GridStep, x: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
            x0_hat = prediction.x0.clamp(-1, 1) if settings.clip else prediction.x0
            change = operator.project(x0_hat, y) - x0_hat
            if sigma_y:
                change = operator.spectral(change, lambda s: correction(s, step, sigma_y, eta))
            x0_hat = x0_hat + change
            if step.is_last:
                return x0_hat, x0_hat
            z = noise() if eta or sigma_y else torch.zeros_like(x)
            if sigma_y:
                spread = operator.spectral(z, lambda s: new_noise(s, step, sigma_y, eta))
                eps = operator.spectral(prediction.eps, lambda s: torch.where(s > 0, 0.0, 1.0))
            else:
                spread, eps = eta * step.sigma_prev * z, prediction.eps
            return step.alpha_prev * x0_hat + kept * step.sigma_prev * eps + spread, x0_hat

        return travelled(grid, x, noise, options, reverse)

    return sampler


def correction(s: Tensor, step: GridStep, sigma_y: float, eta: float) -> Tensor:
    """Return λ of singular values; 1 where they are 0, since nothing is corrected there."""
    limit = s * step.sigma_prev / (step.alpha_prev * sigma_y)
    return torch.where((s == 0) | (limit >= 1), 1.0, limit * math.sqrt(1 - eta**2))


def new_noise(s: Tensor, step: GridStep, sigma_y: float, eta: float) -> Tensor:
    """Return Φ of singular values; η·σ' where they are 0."""
    measured = step.alpha_prev * sigma_y / s.clamp(min=1e-30)
    is_larger = (s > 0) & (measured <= step.sigma_prev)
    left = (step.sigma_prev**2 - measured**2).clamp(min=0).sqrt()
    return torch.where(is_larger, left, eta * step.sigma_prev)
