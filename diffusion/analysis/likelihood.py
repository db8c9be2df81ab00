"""Bits per dimension of images under a model: by the variational bound, or by the probability-flow ODE."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion.analysis.inversion import check_trajectories
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.losses import log_variance, prior_term, vlb_terms
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NetworkDenoiser, build_process
from diffusion.process.time_grid import NoisePoint
from diffusion.protocol.spacing import log_snr, spaced_timesteps
from diffusion.sample.sampler import NaNGuard
from diffusion.system.section import NoOptions

DEFAULT_STEPS = 64  # of the ODE
BIN_WIDTH = 2 / 255  # of 8-bit values in [−1, 1]
RUNGE_KUTTA = ((0.0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1.0, 1 / 6))
"""By stage: the share of the step, and the weight of its slope."""


class Bits(NamedTuple):
    """`total` and `prior` (N,) of each image, `terms` (S,) mean over the images; float64, bits per dimension.

    `times` (S,) are the terms' t. An image's total is the sum of its terms and its prior. The `estimate` is
    the variational bound, vlb, or the likelihood by the probability-flow ODE.
    """

    estimate: Literal["vlb", "ode"]
    times: Tensor
    terms: Tensor
    prior: Tensor
    total: Tensor


class VariationalBound:
    """The bound of 8-bit images of a discrete process (iDDPM, 2102.09672, sec. 3).

    Its `times` are all T, or `steps` of them spread evenly. Fewer timesteps are a process with a bound of its
    own.
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


class ODELikelihood:
    """The likelihood of images with uniform noise within their 8-bit bins, by the ODE.

    The source is Song et al. 2021 (2011.13456), app. D.2. In y = x/(α + σ), with the noise's share
    τ = σ/(α + σ), every process is the straight line y = (1 − τ)·x_0 + τ·ε, and its ODE is dy/dτ = ε̂ − x̂_0.
    Both are finite at α = 0, where a flow ends. Along a solution d log p(y)/dτ = −div(ε̂ − x̂_0).

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
        for share, weight in RUNGE_KUTTA:
            point = points[share]
            with torch.enable_grad():
                reached = (y + span * share * velocity).detach().requires_grad_()
                prediction = self.denoiser((point.alpha + point.sigma) * reached, point.t, condition)
                slope = prediction.eps - prediction.x0  # dy/dτ
                (gradient,) = torch.autograd.grad(slope, reached, signs)
            velocity = slope.detach()
            change = change + weight * velocity
            integral = integral + weight * (gradient * signs).flatten(1).sum(1)
        return y + span * change, span * integral


def _noise_share(point: NoisePoint) -> float:
    """Return τ, the share of σ in α + σ."""
    return point.sigma / (point.alpha + point.sigma)


@torch.no_grad()
def bits_per_dimension(
    loaded: LoadedModel,
    images: Images,
    condition: Condition,
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Bits:
    """Return the bits of uint8 images (N, H, W, C), a row of `condition` each.

    For a discrete process they are the variational bound along all T, or `steps` of them. A continuous one
    has no bound: there they are the likelihood by the ODE in `steps`, by default 64. Image i's noise comes
    from (seed, i) alone. The network runs in float32. `progress` gets (done, total) terms of all images.
    NonFiniteError with the image and the term's place, counted from the smallest t, where numbers are NaN
    or infinite.
    """
    process = build_process(loaded.artefact.process)
    denoiser = NetworkDenoiser(loaded.network, process)
    likelihood: VariationalBound | ODELikelihood
    if isinstance(process, DiscreteProcess):
        likelihood = VariationalBound(denoiser, process, steps)
    else:
        check_trajectories(loaded.artefact, "the likelihood by its ODE")
        likelihood = ODELikelihood(denoiser, steps)
    device, count = next(loaded.network.parameters()).device, len(likelihood.times)
    terms, priors, totals = torch.zeros(count, dtype=torch.float64), [], []
    for start in range(0, len(images), batch_size):
        x_0 = to_model(to_nchw(images[start : start + batch_size]).to(device))
        wanted = condition.rows(slice(start, start + batch_size)).to(device)
        noise = ImageNoise(seed, range(start, start + len(x_0)), (x_0.shape[1], *x_0.shape[2:]))
        names = [f"image {start + row}" for row in range(len(x_0))]
        guard = NaNGuard(names.__getitem__, {"model": loaded.network})
        parts: list[Tensor] = []
        for part in likelihood.terms(x_0, noise, wanted, guard):
            parts.append(part.cpu().double())
            if progress and len(parts) <= count:
                progress(start * count + len(parts) * len(x_0), len(images) * count)
        guard.raise_pending()
        terms += torch.stack(parts[:-1]).sum(1)
        priors.append(parts[-1])
        totals.append(torch.stack(parts).sum(0))
    return Bits(likelihood.name, likelihood.times, terms / len(images), torch.cat(priors), torch.cat(totals))
