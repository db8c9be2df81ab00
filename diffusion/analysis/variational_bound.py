"""Bits per dimension by the variational bound of a discrete process (iDDPM, 2102.09672, sec. 3)."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.losses import log_variance, prior_term, vlb_terms
from diffusion.process.noise import ImageNoise
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.sampler import NaNGuard


class VariationalBound:
    """The bound of 8-bit images; its `times` are all T, or `steps` of them spread evenly.

    Fewer timesteps are a process with a bound of its own.
    """

    name: Literal["vlb"] = "vlb"

    def __init__(self, denoiser: NetworkDenoiser, process: DiscreteProcess, steps: int | None = None) -> None:
        self.denoiser, self.process = denoiser, process
        timesteps = process.timesteps
        self._grid = process.grid(spaced_timesteps("uniform", steps or timesteps, timesteps))
        self.times = self._grid.times

    def terms(
        self, x_0: Tensor, noise: ImageNoise, condition: Condition, guard: NaNGuard
    ) -> Iterator[Tensor]:
        """Yield the (B,) term of each time, then the prior's, in bits per dimension.

        x_0 (B, C, H, W) are images in [−1, 1]; x̂_0 is clipped to that range.
        """
        grid, variance = self._grid, self.process.config.variance
        for i, t in enumerate(grid.times.tolist()):
            index = torch.full((len(x_0),), i)
            x_t = self.process.q_sample(x_0, grid.times[i], noise.draw().to(x_0.device))
            prediction = self.denoiser(x_t, t, condition)
            log_var = log_variance(grid, variance, prediction.variance_fraction, x_t, index)
            term = vlb_terms(grid, x_0, x_t, index, prediction.x0.clamp(-1, 1), log_var)
            guard.check(i + 1, t, *prediction, term)
            yield term
        yield prior_term(grid, x_0)
