"""Mixtures of Gaussians: data with an optimal denoiser in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Prediction, expand, time_tensor
from diffusion.process.noise_process import NoiseProcess


@dataclass(frozen=True)
class Mixture:
    """Gaussians of one width around `means` (K, D), each as likely."""

    means: Tensor
    std: float

    def x0(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return E[x_0 | x_t], (N, D), of x_t = α·x_0 + σ·ε: a mean over the Gaussians' posterior."""
        variance = alpha**2 * self.std**2 + sigma**2
        weights = torch.softmax(-torch.cdist(x, alpha * self.means).square() / (2 * variance), 1)
        mean = weights @ self.means
        return mean + alpha * self.std**2 / variance * (x - alpha * mean)

    def draw(self, count: int, source: torch.Generator) -> Tensor:
        """Return points (count, D) of the data, of each Gaussian in turn."""
        centres = self.means[torch.arange(count) % len(self.means)]
        return centres + self.std * torch.randn(centres.shape, generator=source, dtype=self.means.dtype)


def ring(count: int, radius: float, std: float) -> Mixture:
    """Return Gaussians in two dimensions, evenly spaced on a circle; the first is at its top."""
    angles = math.pi / 2 + 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return Mixture(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std)


@dataclass(frozen=True)
class MixtureDenoiser:
    """The optimal denoiser within a process; points are in the channels, (B, D, 1, 1), at one time."""

    mixture: Mixture
    process: NoiseProcess

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """Return x̂_0 = E[x_0 | x_t] and the corresponding ε̂."""
        alpha, sigma = self.process.alpha_sigma(time_tensor(t))
        x0 = self.mixture.x0(x.flatten(1), alpha, sigma).reshape(x.shape).to(x.dtype)
        return Prediction(x0, (x - expand(alpha, x) * x0) / expand(sigma, x))
