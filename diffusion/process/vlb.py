"""The variational bound of an 8-bit image's likelihood, in bits per dimension, a term each step of a grid."""

import math

import torch
from torch import Tensor

from diffusion.process.posterior import posterior_mean, take
from diffusion.process.time_grid import TimeGrid


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
    grid: TimeGrid, x_0: Tensor, x_t: Tensor, index: Tensor, x0_hat: Tensor, log_var: Tensor
) -> Tensor:
    """(B,) terms of the bound at `index`, in bits per dimension.

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
    """(B,) KL(q(x_T|x_0) ‖ N(0, I)) in bits per dimension: what no network can change."""
    last = torch.full((len(x_0),), len(grid) - 1)
    mean = take(grid.alpha, last, x_0) * x_0
    log_var = take(grid.sigma.square().log(), last, x_0).expand_as(x_0)
    zero = torch.zeros_like(x_0)
    return normal_kl(mean, log_var, zero, zero).flatten(1).mean(1) / math.log(2)
