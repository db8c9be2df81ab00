"""The Gaussian reverse process: posterior, learned variance, losses and the terms of the bound.

All losses are per image, in the units of their papers: L_simple per pixel, L_vlb in bits per dimension.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.process_config import ProcessConfig
from diffusion.schedule import (
    Schedule,
    at,
    predict_x0,
    q_sample,
    velocity,
    velocity_to_eps,
    velocity_to_x0,
)

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B,C,H,W), original timesteps (B,), labels (B,) or None) → (B, C or 2C, H, W): ε, then v."""

SNR_LIMIT = 5.0  # γ of min-SNR weighting, the paper's choice


class Prediction(NamedTuple):
    """What a network says of x_t: `eps` (B, C, H, W), and `v` likewise or None for a fixed variance."""

    eps: Tensor
    v: Tensor | None


def split(output: Tensor, channels: int) -> Prediction:
    """Part a network's output of C or 2C channels into ε and v."""
    if output.shape[1] == channels:
        return Prediction(output, None)
    eps, v = output.chunk(2, dim=1)
    return Prediction(eps, v)


def predict(
    network: Network, schedule: Schedule, x_t: Tensor, index: Tensor, labels: Tensor | None
) -> Prediction:
    """Ask the network at the original timesteps of the (B,) indices; ε and v in `x_t`'s dtype."""
    output = network(x_t, schedule.timesteps[index.to(schedule.timesteps.device)].to(x_t.device), labels)
    return split(output.to(x_t.dtype), x_t.shape[1])


def in_eps(network: Network, process: ProcessConfig) -> Network:
    """The network with ε in its first channels, whatever it was trained to predict; v is left as it is.

    So guidance, samplers and the bound know ε alone.
    """
    if process.prediction == "eps":
        return network
    schedule = Schedule.named(process.schedule, process.timesteps)

    def wrapped(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        output = network(x, t, labels).to(x.dtype)
        channels = x.shape[1]
        eps = velocity_to_eps(schedule, x, t, output[:, :channels])
        return torch.cat([eps, output[:, channels:]], dim=1)

    return wrapped


def posterior_mean(schedule: Schedule, x_0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0) (DDPM eq. 7)."""
    alpha_bar, previous, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    of_x0 = previous.sqrt() * betas / (1 - alpha_bar)
    of_xt = (1 - betas).sqrt() * (1 - previous) / (1 - alpha_bar)
    return at(of_x0, index, x_0) * x_0 + at(of_xt, index, x_t) * x_t


def log_variance(schedule: Schedule, variance: str, v: Tensor | None, like: Tensor, index: Tensor) -> Tensor:
    """log Σ of the reverse step, broadcastable to `like`.

    `small` is log β̃, `large` log β (DDPM sec. 3.2, with the first entry of iDDPM's code: β̃_1, as β_0
    would put noise into the 8-bit likelihood); `learned` is f·log β + (1−f)·log β̃ with f = (v+1)/2
    (iDDPM eq. 15).
    """
    small = schedule.posterior_log_variance_clipped
    if variance == "small":
        return at(small, index, like)
    if variance == "large":
        return at(torch.cat([small[:1], schedule.betas[1:].log()]), index, like)
    if v is None:
        raise ValueError("a learned variance needs a network with 2C output channels")
    fraction = (v + 1) / 2
    return fraction * at(schedule.betas.log(), index, like) + (1 - fraction) * at(small, index, like)


def normal_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) of diagonal Gaussians, elementwise, in nats."""
    squared = (mean_1 - mean_2) ** 2 * torch.exp(-log_var_2)
    return 0.5 * (log_var_2 - log_var_1 + torch.exp(log_var_1 - log_var_2) - 1 + squared)


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log-probability in nats of 8-bit images in [−1, 1] under N(mean, var): bins of 2/255, open at ±1.

    DDPM eq. 13. The difference of the two cumulative probabilities is floored at 1e-12.
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
    schedule: Schedule, x_0: Tensor, x_t: Tensor, index: Tensor, x0_hat: Tensor, log_var: Tensor
) -> Tensor:
    """(B,) terms of the bound at `index`, in bits per dimension.

    KL(q(x_{t−1}|x_t,x_0) ‖ p_θ) for t > 0 (DDPM eq. 5), the discretised likelihood of x_0 at t = 0.
    """
    true_mean = posterior_mean(schedule, x_0, x_t, index)
    mean = posterior_mean(schedule, x0_hat, x_t, index)
    true_log_var = at(schedule.posterior_log_variance_clipped, index, x_t)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    nll = -discretized_log_likelihood(x_0, mean, log_var.expand_as(x_0))
    first = (index == 0).to(x_0.device).reshape(-1, *[1] * (x_0.ndim - 1))
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def prior_term(schedule: Schedule, x_0: Tensor) -> Tensor:
    """(B,) KL(q(x_T|x_0) ‖ N(0, I)) in bits per dimension: what no network can change."""
    last = torch.full((len(x_0),), len(schedule) - 1)
    mean = at(schedule.alphas_cumprod.sqrt(), last, x_0) * x_0
    log_var = at((1 - schedule.alphas_cumprod).log(), last, x_0).expand_as(x_0)
    zero = torch.zeros_like(x_0)
    return normal_kl(mean, log_var, zero, zero).flatten(1).mean(1) / math.log(2)


def training_losses(
    network: Network,
    schedule: Schedule,
    config: ProcessConfig,
    x_0: Tensor,
    index: Tensor,
    noise: Tensor,
    labels: Tensor | None,
) -> dict[str, Tensor]:
    """Per-image losses, each (B,): `loss`, and its parts `mse` and, with a learned variance, `vlb`.

    `mse` is of what the network predicts, not weighted. simple: L_simple, DDPM eq. 14. hybrid: L_simple +
    (T/1000)·L_vlb with the mean detached (iDDPM eq. 16). vlb: T·L_vlb, its mean over uniform t the bound.
    """
    x_t = q_sample(schedule, x_0, index, noise)
    of_eps = config.prediction == "eps"
    predicted, v = predict(network, schedule, x_t, index, labels)
    target = noise if of_eps else velocity(schedule, x_0, index, noise)
    mse = (target - predicted).square().flatten(1).mean(1)
    simple = mse if config.weighting == "none" else min_snr_weight(schedule, config, index).to(mse) * mse
    if config.loss == "simple":
        return {"loss": simple, "mse": mse}
    seen = predicted if config.loss == "vlb" else predicted.detach()
    x0_hat = (predict_x0 if of_eps else velocity_to_x0)(schedule, x_t, index, seen)
    vlb = vlb_terms(schedule, x_0, x_t, index, x0_hat, log_variance(schedule, config.variance, v, x_t, index))
    if config.loss == "vlb":
        return {"loss": len(schedule) * vlb, "mse": mse, "vlb": vlb}
    return {"loss": simple + len(schedule) / 1000 * vlb, "mse": mse, "vlb": vlb}


def min_snr_weight(schedule: Schedule, config: ProcessConfig, index: Tensor) -> Tensor:
    """(B,) float64 min-SNR-5 weights, SNR = ᾱ/(1−ᾱ) (Hang et al. 2023, 2303.09556, eq. 6 and app. A).

    min(SNR, 5) in terms of x̂_0's error, so divided by SNR for ε's and by SNR + 1 for the velocity's.
    """
    alpha_bar = schedule.alphas_cumprod[index.to(schedule.alphas_cumprod.device)]
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=SNR_LIMIT) / (snr if config.prediction == "eps" else snr + 1)
