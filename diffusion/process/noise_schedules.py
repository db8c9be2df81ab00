"""The schedules of DDPM and iDDPM: betas of T timesteps, as entries of PROCESSES."""

import math

import torch
from torch import Tensor

from diffusion.process.discrete import TabulatedProcess
from diffusion.process.process_registry import DiscreteConfig


def linear_betas(timesteps: int) -> Tensor:
    """(T,) float64 betas of DDPM (2006.11239, sec. 4), scaled by 1000/T as iDDPM's code does for other T."""
    scale = 1000 / timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(timesteps: int) -> Tensor:
    """(T,) float64 betas of iDDPM (2102.09672, eq. 17), at most 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - alpha_bar((t + 1) / timesteps) / alpha_bar(t / timesteps) for t in range(timesteps)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)


def linear(config: DiscreteConfig) -> TabulatedProcess:
    """DDPM's process."""
    return process_from_betas(config, linear_betas(config.timesteps))


def cosine(config: DiscreteConfig) -> TabulatedProcess:
    """iDDPM's process."""
    return process_from_betas(config, cosine_betas(config.timesteps))


def process_from_betas(config: DiscreteConfig, betas: Tensor) -> TabulatedProcess:
    """Return the process of (T,) betas: ᾱ_t is the product of 1 − β up to t (DDPM eq. 4)."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if config.zero_terminal_snr:
        alphas_cumprod = with_zero_terminal_snr(alphas_cumprod)
    return TabulatedProcess(config, alphas_cumprod)


def with_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return ᾱ with √ᾱ scaled and shifted to 0 at the last time (Lin et al. 2023, 2305.08891, alg. 1).

    The first value is unchanged.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)).square()
