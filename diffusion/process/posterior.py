"""The reverse step's mean and variance along a grid: q(x_{t−1}|x_t, x_0), and the Σ of a model.

An `index` (B,) counts along the grid's own steps.
"""

import torch
from torch import Tensor

from diffusion.process.denoiser_output import expand
from diffusion.process.time_grid import TimeGrid


def take(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """A grid's table at the (B,) indices, as (B, 1, 1, 1) on `like`'s device and in its dtype."""
    return expand(table[index.to(table.device)], like)


def posterior_mean(grid: TimeGrid, x_0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0): (α'β·x_0 + α/α'·σ'²·x_t)/σ² (DDPM eq. 7)."""
    variance = grid.sigma.square()
    of_x0 = grid.alpha_prev * grid.betas / variance
    of_xt = grid.alpha / grid.alpha_prev * grid.sigma_prev.square() / variance
    return take(of_x0, index, x_0) * x_0 + take(of_xt, index, x_t) * x_t


def log_variance(
    grid: TimeGrid, variance: str, fraction: Tensor | None, like: Tensor, index: Tensor
) -> Tensor:
    """log Σ of the reverse step, broadcastable to `like`.

    `small` is log β̃, `large` log β (DDPM sec. 3.2, with the first entry of iDDPM's code: β̃_1, as β_0
    would put noise into the 8-bit likelihood); `learned` is f·log β + (1−f)·log β̃ of the network's fraction f
    (iDDPM eq. 15).
    """
    small = grid.posterior_log_variance_clipped
    if variance == "small":
        return take(small, index, like)
    if variance == "large":
        return take(torch.cat([small[:1], grid.betas[1:].log()]), index, like)
    if fraction is None:
        raise ValueError("a learned variance needs a network with 2C output channels")
    return fraction * take(grid.betas.log(), index, like) + (1 - fraction) * take(small, index, like)
