"""Bits per dimension by the probability-flow ODE (Song et al. 2021, 2011.13456, app. D.2).

In y = x/(α + σ), with the noise's share τ = σ/(α + σ), every process is the straight line
y = (1 − τ)·x_0 + τ·ε, and its ODE is dy/dτ = ε̂ − x̂_0. Both are finite at α = 0, where a flow ends. Along a
solution d log p(y)/dτ = −div(ε̂ − x̂_0).
"""

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.noise import ImageNoise
from diffusion.process.time_grid import NoisePoint
from diffusion.protocol.spacing import log_snr
from diffusion.sample.sampler import NaNGuard
from diffusion.system.section import NoOptions

DEFAULT_STEPS = 64
BIN_WIDTH = 2 / 255  # of 8-bit values in [−1, 1]
STAGES = (
    (0.0, 1 / 6),
    (1 / 2, 1 / 3),
    (1 / 2, 1 / 3),
    (1.0, 1 / 6),
)  # share of the step, weight of its slope


class ODELikelihood:
    """The likelihood of images with uniform noise within their 8-bit bins, of a process of any kind.

    `steps` steps of Runge and Kutta's method of order 4, evenly in log SNR, lead from the noise level
    `sigma_min` to the last time; `times` are those at which they start. On average the result is an upper
    bound of the bits of the 8-bit images (Theis et al. 2016, 1511.01844, sec. 3.1).
    """

    name: Literal["ode"] = "ode"

    def __init__(self, denoiser: NetworkDenoiser, steps: int | None = None) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        count, low, high = (steps or DEFAULT_STEPS) + 1, self.process.sigma_min, self.process.sigma_max
        levels = [*log_snr(count, low, high, NoOptions())[:-1], math.inf]
        self._points = [self.process.locate(level) for level in levels]
        self.times = torch.tensor([point.t for point in self._points[:-1]], dtype=torch.float64)

    def terms(
        self, x_0: Tensor, noise: ImageNoise, condition: Condition, guard: NaNGuard
    ) -> Iterator[Tensor]:
        """Yield the (B,) term of each step, its divergence, then the prior's, in bits per dimension.

        x_0 (B, C, H, W) are images in [−1, 1]. The divergence is Hutchinson's estimate vᵀ(∂/∂y)v with random
        signs v, one draw an image. The prior's term is that of the last point under the noise from which
        sampling starts, with the change of variables from the bins to y.
        """
        within_bin = torch.special.ndtr(noise.draw()) - 0.5  # Φ of a normal number is uniform
        signs = noise.draw().sign().to(x_0.device)
        scale, last = 1 - _noise_share(self._points[0]), self._points[-1]
        y = scale * (x_0 + BIN_WIDTH * within_bin.to(x_0.device))
        for done, (start, end) in enumerate(itertools.pairwise(self._points), start=1):
            y, divergence = self._step(start, end, y, signs, condition)
            guard.check(done, start.t, y, divergence)
            yield -divergence / signs[0].numel() / math.log(2)
        std = self.process.grid([last.t]).initial_noise_scale / (last.alpha + last.sigma)
        nats = (y / std).square().flatten(1).mean(1) / 2 + math.log(std * math.sqrt(2 * math.pi))
        yield (nats - math.log(scale * BIN_WIDTH)) / math.log(2)

    def _step(
        self, start: NoisePoint, end: NoisePoint, y: Tensor, signs: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return y at the end of a step, and the integral of the divergence over it, (B,)."""
        first, last = _noise_share(start), _noise_share(end)
        middle, span = (first + last) / 2, last - first
        points = {0.0: start, 0.5: self.process.locate(middle / (1 - middle)), 1.0: end}
        velocity, change, integral = torch.zeros_like(y), torch.zeros_like(y), y.new_zeros(len(y))
        for share, weight in STAGES:
            reached = y + span * share * velocity
            velocity, divergence = self._slope(points[share], reached, signs, condition)
            change, integral = change + weight * velocity, integral + weight * divergence
        return y + span * change, span * integral

    def _slope(
        self, point: NoisePoint, y: Tensor, signs: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return dy/dτ and its divergence (B,)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            prediction = self.denoiser((point.alpha + point.sigma) * y, point.t, condition)
            velocity = prediction.eps - prediction.x0
            (gradient,) = torch.autograd.grad(velocity, y, signs)
        return velocity.detach(), (gradient * signs).flatten(1).sum(1)


def _noise_share(point: NoisePoint) -> float:
    """Return τ, the share of σ in α + σ."""
    return point.sigma / (point.alpha + point.sigma)
