"""Steps of the probability-flow ODE, common to its solvers.

With x̄ = x/α and the noise level σ̄ = σ/α it is dx̄/dσ̄ = ε for every process (DDIM eq. 14): x̄ is the image
that is not scaled down, and σ̄ the σ of Karras et al. (2022, 2206.00364). At α = 0, where a flow may begin,
both are infinite, but x and the prediction are not.
"""

import math

from torch import Tensor

from diffusion.process.denoiser import Prediction
from diffusion.process.time_grid import GridStep

SERIES_BELOW, SERIES_TERMS = 1.0, 20  # of φ_k, where the recursion would cancel


def noise_level(log_snr: float) -> float:
    """Return σ̄ = σ/α = e^−λ: ∞ at α = 0, and 0 at the image."""
    return math.exp(-log_snr)


def data_and_noise(
    prediction: Prediction, x: Tensor, alpha: float, sigma: float, clip: bool
) -> tuple[Tensor, Tensor]:
    """Return x̂_0 and ε̂ of x = α·x̂_0 + σ·ε̂; with `clip` x̂_0 within [−1, 1], and ε̂ computed from it."""
    if not clip:
        return prediction.x0, prediction.eps
    x0_hat = prediction.x0.clamp(-1, 1)
    return x0_hat, (x - alpha * x0_hat) / sigma


def euler_step(step: GridStep, x0_hat: Tensor, eps: Tensor) -> Tensor:
    """Return x' after Euler's step along ε̂, which is DDIM's with η = 0: α'·x̂_0 + σ'·ε̂."""
    return step.alpha_prev * x0_hat + step.sigma_prev * eps


def slope_change(step: GridStep, change: Tensor) -> Tensor:
    """Return what x' gains if the slope of x̄ is larger by `change`: α'·(σ̄' − σ̄)·change, at α > 0."""
    return step.alpha_prev * (noise_level(step.log_snr_prev) - noise_level(step.log_snr)) * change


def phi(order: int, z: float) -> float:
    """Return φ_k(z) = Σ_j z^j/(j + k)!, so φ_0 = e^z and φ_k = (φ_{k−1} − 1/(k−1)!)/z."""
    if abs(z) < SERIES_BELOW:
        return sum(z**j / math.factorial(j + order) for j in range(SERIES_TERMS))
    value = math.exp(z)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / z
    return value
