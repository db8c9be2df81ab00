"""The reverse step of DDPM, iDDPM and DDIM, which differ in eta and in the added noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process.denoiser import Prediction
from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.samplers import Noise
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import DenoiserCall, Step, Trajectory
from diffusion.sample.sampling_steps import check_eta, check_noise


@dataclass(frozen=True)
class Ddim:
    """DDIM (2010.02502): η = 0 is deterministic, η = 1 DDPM. The last step adds no noise.

    `noise` small adds η√β̃ (eq. 16), large η√β (σ̂ of Table 1), learned η√Σ_θ (the spaced Σ of iDDPM sec. 4).
    With `clip`, x̂_0 is clipped to [−1, 1] and ε recomputed from it, unless the prediction `keeps_eps`.
    """

    eta: float = 0.0
    noise: Noise = "small"
    clip: bool = True

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """Return the trajectory from x; UsageError, at its start, if η is too large for the grid."""
        check_eta(grid, self.eta)
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            z = noise() if self.eta > 0 and not step.is_last else None
            x, x0_hat = self.step(step, x, prediction, z)
            yield Step(done, len(grid), x, x0_hat)

    def step(
        self, step: GridStep, x: Tensor, prediction: Prediction, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (x_prev, x̂_0) after one step of the grid, shapes of `x`.

            x_prev = α'·x̂_0 + √(σ'² − η²β̃)·ε + s·z   (DDIM eq. 12, 16; α' = √ᾱ_prev, σ'² = 1 − ᾱ_prev)

        `z` None adds no noise. A prediction's shift g moves the mean of a noisy step by s²·g (ADM alg. 1).
        """
        x0_hat, eps = prediction.x0, prediction.eps
        if self.clip:
            x0_hat = x0_hat.clamp(-1, 1)
            recomputed = (x - step.alpha * x0_hat) / step.sigma
            kept = prediction.keeps_eps
            eps = recomputed if kept is None else torch.where(kept[:, None, None, None], eps, recomputed)
        direction = math.sqrt(max(0.0, step.sigma_prev**2 - self.eta**2 * step.posterior_variance))
        x_prev = step.alpha_prev * x0_hat + direction * eps
        if z is not None and step.beta > 0:
            scale = self.scale(step, prediction.variance_fraction)
            x_prev = x_prev + scale * z
            if prediction.mean_shift is not None:
                x_prev = x_prev + scale**2 * prediction.mean_shift
        return x_prev, x0_hat

    def scale(self, step: GridStep, fraction: Tensor | None) -> Tensor | float:
        """Return the deviation s of the added noise; UsageError for learned noise without a fraction."""
        if self.noise == "small":
            return self.eta * math.sqrt(step.posterior_variance)
        if self.noise == "large":
            return self.eta * math.sqrt(step.beta)
        check_noise(self.noise, fraction is not None)
        assert fraction is not None
        log_variance = fraction * step.log_beta + (1 - fraction) * step.log_posterior_variance
        return self.eta * torch.exp(0.5 * log_variance)


def build(settings: SampleSettings) -> Ddim:
    """Return the sampler of these settings."""
    return Ddim(settings.eta, settings.noise, settings.clip)
