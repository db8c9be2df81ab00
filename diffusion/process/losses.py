"""The objectives of DDPM and iDDPM, loss weights, and the posterior and the bound that they use.

L_simple is a mean over pixels, L_vlb is in bits per dimension.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Network, expand, split_output
from diffusion.process.discrete import require_discrete
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.objective import Batch, Objective, TrainedNetwork, build_objective
from diffusion.process.process_options import MinSNROptions, VelocityOptions
from diffusion.process.time_grid import TimeGrid
from diffusion.system.devices import to_device
from diffusion.system.section import Section


class Noised(NamedTuple):
    """A batch of images x_0 with noise, at (B,) times: x_t, and a network's output of C or 2C channels."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor
    output: Tensor


def noised(network: TrainedNetwork, batch: Batch) -> Noised:
    """Return x_t of the batch with the network's output for it."""
    x_t = network.process.q_sample(batch.x_0, batch.t, batch.noise)
    output = network.output(x_t, batch.t, batch.condition)
    return Noised(batch.x_0, x_t, batch.t, batch.noise, output)


def training_losses(
    network: Network, process: NoiseProcess, x_0: Tensor, t: Tensor, noise: Tensor, condition: Condition
) -> dict[str, Tensor]:
    """Return the losses (B,) of the process's objective for images at times (B,), outside a training."""
    batch = Batch(x_0, condition.labels, t, torch.ones(len(t)), noise, **condition.further)
    losses: dict[str, Tensor] = build_objective(process)(TrainedNetwork(network, process), batch, 0)
    return losses


class Simple(Objective):
    """L_simple: the squared error of what the network predicts (DDPM eq. 14), weighted by `weighting`."""

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss` and the unweighted error `mse`."""
        mse = squared_error(self.process, made := noised(network, batch))
        return {"loss": weighted_error(self.process, made, mse), "mse": mse}


class Hybrid(Objective):
    """L_simple + (T/1000)·L_vlb. In L_vlb the mean is detached: it trains the variance (iDDPM eq. 16)."""

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss` and its parts `mse` and `vlb`."""
        mse = squared_error(self.process, made := noised(network, batch))
        term, timesteps = _vlb(self.process, made, trains_mean=False)
        loss = weighted_error(self.process, made, mse) + timesteps / 1000 * term
        return {"loss": loss, "mse": mse, "vlb": term}


class BoundLoss(Objective):
    """T·L_vlb in bits per dimension; its mean over uniform t is the bound (iDDPM eq. 4)."""

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss`, its terms `vlb`, and the error `mse`."""
        term, timesteps = _vlb(self.process, made := noised(network, batch), trains_mean=True)
        return {"loss": timesteps * term, "mse": squared_error(self.process, made), "vlb": term}


def squared_error(process: NoiseProcess, batch: Noised) -> Tensor:
    """Return the mean squared error (B,) of what the network predicts."""
    predicted, _ = split_output(batch.output, batch.x_t.shape[1])
    target = process.target(batch.x_0, batch.t, batch.noise)
    return (target - predicted).square().flatten(1).mean(1)


def weighted_error(process: NoiseProcess, batch: Noised, mse: Tensor) -> Tensor:
    """Return the errors times `weighting` (B,); `mse`'s device may lack the weights' own dtype."""
    return to_device(process.loss_weight(batch.t).to(mse.dtype), mse.device) * mse


def _vlb(process: NoiseProcess, batch: Noised, *, trains_mean: bool) -> tuple[Tensor, int]:
    """Return the bound's terms (B,) at the batch's times, and T."""
    discrete = require_discrete(process, f"loss {process.config.loss}")
    prediction = process.read(batch.output, batch.x_t, batch.t)
    x0_hat = prediction.x0 if trains_mean else prediction.x0.detach()
    grid = discrete.full_grid(batch.x_t.device)
    variance = discrete.config.variance
    log_var = log_variance(grid, variance, prediction.variance_fraction, batch.x_t, batch.t)
    return vlb_terms(grid, batch.x_0, batch.x_t, batch.t, x0_hat, log_var), discrete.timesteps


def take(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return a grid's table at the (B,) indices, as (B, 1, 1, 1) on `like`'s device and in its dtype."""
    return expand(table[index.to(table.device)], like)


def posterior_mean(grid: TimeGrid, x_0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
    """Return the mean of q(x_{t−1} | x_t, x_0): (α'β·x_0 + α/α'·σ'²·x_t)/σ² (DDPM eq. 7)."""
    variance = grid.sigma.square()
    of_x0 = grid.alpha_prev * grid.betas / variance
    of_xt = grid.alpha / grid.alpha_prev * grid.sigma_prev.square() / variance
    return take(of_x0, index, x_0) * x_0 + take(of_xt, index, x_t) * x_t


def log_variance(
    grid: TimeGrid, variance: str, fraction: Tensor | None, like: Tensor, index: Tensor
) -> Tensor:
    """Return log Σ of the reverse step, broadcastable to `like`.

    `small` is log β̃, `large` log β (DDPM sec. 3.2), but β̃_1 at t = 0, as in iDDPM's code, since β_0 would put
    noise into the 8-bit likelihood. `learned` is f·log β + (1−f)·log β̃ of the network's fraction f (iDDPM
    eq. 15).
    """
    small = grid.posterior_log_variance_clipped
    if variance == "small":
        return take(small, index, like)
    if variance == "large":
        return take(torch.cat([small[:1], grid.betas[1:].log()]), index, like)
    if fraction is None:
        raise ValueError("a learned variance needs a network with 2C output channels")
    return fraction * take(grid.betas.log(), index, like) + (1 - fraction) * take(small, index, like)


def normal_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """Return KL(N₁ ‖ N₂) of diagonal Gaussians, elementwise, in nats."""
    squared = (mean_1 - mean_2) ** 2 * torch.exp(-log_var_2)
    return 0.5 * (log_var_2 - log_var_1 + torch.exp(log_var_1 - log_var_2) - 1 + squared)


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return the log-probability of 8-bit images in [−1, 1] under N(mean, var), in nats (DDPM eq. 13).

    The bins have width 2/255 and are open at ±1. The difference of the two cumulative probabilities is at
    least 1e-12.
    """
    inverse_std = torch.exp(-0.5 * log_var)
    distance = x_0 - mean
    # The bin is symmetric: both cumulative probabilities on the side where they are small and so exact.
    nearest, farthest = distance.abs() - 1 / 255, distance.abs() + 1 / 255
    scale = inverse_std / math.sqrt(2)  # Φ(−x) = erfc(x/√2)/2; torch's ndtr loses its lower tail
    inside = (0.5 * (torch.erfc(scale * nearest) - torch.erfc(scale * farthest))).clamp(min=1e-12).log()
    log_open_below = torch.special.log_ndtr(inverse_std * (distance + 1 / 255))
    log_open_above = torch.special.log_ndtr(-inverse_std * (distance - 1 / 255))
    return torch.where(x_0 < -0.999, log_open_below, torch.where(x_0 > 0.999, log_open_above, inside))


def vlb_terms(
    grid: TimeGrid, x_0: Tensor, x_t: Tensor, index: Tensor, x0_hat: Tensor, log_var: Tensor
) -> Tensor:
    """Return the terms (B,) of the bound at `index`, in bits per dimension.

    KL(q(x_{t−1}|x_t,x_0) ‖ p_θ) for t > 0 (DDPM eq. 5), the discretised likelihood of x_0 at t = 0.
    """
    true_mean = posterior_mean(grid, x_0, x_t, index)
    mean = posterior_mean(grid, x0_hat, x_t, index)
    true_log_var = take(grid.posterior_log_variance_clipped, index, x_t)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    nll = -discretized_log_likelihood(x_0, mean, log_var.expand_as(x_0))
    first = (index == 0).to(x_0.device).reshape(-1, *[1] * (x_0.ndim - 1))
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def prior_term(grid: TimeGrid, x_0: Tensor) -> Tensor:
    """Return KL(q(x_T|x_0) ‖ N(0, I)), (B,) in bits per dimension, which no network can change."""
    last = torch.full((len(x_0),), len(grid) - 1)
    mean = take(grid.alpha, last, x_0) * x_0
    log_var = take(grid.sigma.square().log(), last, x_0).expand_as(x_0)
    zero = torch.zeros_like(x_0)
    return normal_kl(mean, log_var, zero, zero).flatten(1).mean(1) / math.log(2)


# Entries of LOSS_WEIGHTS: weights of x̂_0's squared error by α, σ and σ_data, tensors of one shape. The
# process converts them to the error of what the network predicts (`NoiseProcess.loss_weight`).


def none(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> None:
    """No weight: the error of what the network predicts."""


def min_snr(alpha: Any, sigma: Any, sigma_data: float, options: MinSNROptions) -> Any:
    """min(SNR, γ) with SNR = α²/σ²."""
    return (alpha / sigma).square().clamp(max=options.gamma)


def min_snr_soft(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> Any:
    """α²/(α²σ_data² + σ²): a smooth minimum of SNR and 1/σ_data²."""
    return alpha**2 / (alpha**2 * sigma_data**2 + sigma**2)


def edm(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> Any:
    """1/c_out² = (α²σ_data² + σ²)/(σ·σ_data)²: 1 for prediction edm."""
    return (alpha**2 * sigma_data**2 + sigma**2) / (sigma * sigma_data) ** 2


def velocity(alpha: Any, sigma: Any, sigma_data: float, options: VelocityOptions) -> Any:
    """1/max(σ, min_sigma)²: the squared error of the velocity ε − x_0 or α·ε − σ·x_0, bounded near t = 0."""
    return sigma.clamp(min=options.min_sigma) ** -2
