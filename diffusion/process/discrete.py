"""Discrete processes, with timesteps 0 … T−1: those of DDPM and iDDPM, entries of PROCESSES."""

import math

import torch
from torch import Tensor

from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import PROCESSES, DiscreteConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.system.devices import float64_device, to_device
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference

CPU = torch.device("cpu")
MIN_LOG_SNR = -20.0  # of interpolated times


class DiscreteProcess(NoiseProcess):
    """A process with timesteps 0 … T−1, as DDPM and iDDPM have; x_T is taken for N(0, I).

    α and σ exist at real times too. The network embeds t itself.
    """

    config: DiscreteConfig

    def __init__(self, config: DiscreteConfig) -> None:
        super().__init__(config)
        self.timesteps: int = config.timesteps
        self.t_min, self.t_max = 0.0, config.timesteps - 1.0
        self._full: dict[torch.device, TimeGrid] = {}

    def time_at(self, share: Tensor) -> Tensor:
        """Return the timesteps ⌊share·T⌋; each has an equal part of [0, 1)."""
        return (share * self.timesteps).long().clamp(max=self.timesteps - 1)

    def full_grid(self, device: torch.device = CPU) -> TimeGrid:
        """Return the grid of all times 0 … T−1, of training and the bound; it is made once per device.

        If the device has no float64, it is on the CPU.
        """
        device = float64_device(device)
        if device not in self._full:
            grid = self.grid(range(self.timesteps))
            times, alpha, sigma = (to_device(one, device) for one in (grid.times, grid.alpha, grid.sigma))
            self._full[device] = TimeGrid(times, alpha, sigma, grid.locate)
        return self._full[device]

    def probe_grid(self) -> TimeGrid:
        """Return the grid of all times."""
        return self.full_grid()


class TabulatedProcess(DiscreteProcess):
    """A variance-preserving process with an exact table of ᾱ at the timesteps.

    Between them λ = log α/σ is a straight line in t; towards a time without any image it ends at
    MIN_LOG_SNR.
    """

    def __init__(self, config: DiscreteConfig, alphas_cumprod: Tensor) -> None:
        super().__init__(config)
        alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self._tables = {CPU: torch.stack([alpha, sigma, (alpha / sigma).log().clamp(min=MIN_LOG_SNR)])}

    @property
    def sigma_max(self) -> float:
        """The noise level of the last time at which some of the image is left."""
        last = self.timesteps - (1 if self._tables[CPU][0, -1] > 0 else 2)
        return float(self.noise_level(torch.tensor(last)))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table's values at timesteps; real times outside [0, T−1] count as the nearer end."""
        alpha, sigma, log_snr = self._table(t.device)
        t = t.to(alpha.device)
        if not t.is_floating_point():
            return alpha[t], sigma[t]
        t = t.double().clamp(0, self.timesteps - 1)
        before = t.floor().long()
        after = (before + 1).clamp(max=self.timesteps - 1)
        between = 2 * torch.lerp(log_snr[before], log_snr[after], t - before)
        whole = t == before
        return (
            torch.where(whole, alpha[before], between.sigmoid().sqrt()),
            torch.where(whole, sigma[before], (-between).sigmoid().sqrt()),
        )

    def times_at(self, levels: Tensor) -> Tensor:
        """Return the real times with these noise levels, from the straight lines of λ between timesteps."""
        log_level = -self._table(levels.device)[2]
        wanted = levels.to(log_level.device).double().log()
        after = torch.searchsorted(log_level, wanted.contiguous()).clamp(1, self.timesteps - 1)
        first, last = log_level[after - 1], log_level[after]
        between: Tensor = (after - 1 + (wanted - first) / (last - first)).clamp(0, self.timesteps - 1)
        return between

    def _table(self, device: torch.device) -> Tensor:
        """Return α, σ and λ of the timesteps, (3, T), on the device, or where float64 is."""
        device = float64_device(device)
        if device not in self._tables:
            self._tables[device] = to_device(self._tables[CPU], device)
        return self._tables[device]


def require_discrete(process: NoiseProcess, purpose: str) -> DiscreteProcess:
    """Return the process; UsageError if it is continuous, which `purpose` does not allow."""
    if isinstance(process, DiscreteProcess):
        return process
    kinds = {name: load_reference(entry.config) for name, entry in PROCESSES.items()}
    schedules = [name for name, kind in kinds.items() if issubclass(kind, DiscreteConfig)]
    raise UsageError(
        f"{purpose} needs a discrete process, and process.schedule {process.config.schedule} is continuous: "
        f"use {' or '.join(schedules)}"
    )


def linear(config: DiscreteConfig) -> TabulatedProcess:
    """DDPM's betas (2006.11239, sec. 4), scaled by 1000/T as iDDPM's code does for other T."""
    scale = 1000 / config.timesteps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, config.timesteps, dtype=torch.float64)
    return process_from_betas(config, betas.clamp(max=0.999))


def cosine(config: DiscreteConfig) -> TabulatedProcess:
    """iDDPM's betas (2102.09672, eq. 17), at most 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    timesteps = config.timesteps
    betas = [1 - alpha_bar((t + 1) / timesteps) / alpha_bar(t / timesteps) for t in range(timesteps)]
    return process_from_betas(config, torch.tensor(betas, dtype=torch.float64).clamp(max=0.999))


def process_from_betas(config: DiscreteConfig, betas: Tensor) -> TabulatedProcess:
    """Return the process of (T,) float64 betas: ᾱ_t is the product of 1 − β up to t (DDPM eq. 4).

    For a terminal SNR of zero √ᾱ is scaled and shifted to 0 at the last time (Lin et al. 2023, 2305.08891,
    alg. 1). The first value is unchanged.
    """
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if config.zero_terminal_snr:
        root = alphas_cumprod.sqrt()
        first, last = root[0], root[-1]
        alphas_cumprod = ((root - last) * first / (first - last)).square()
    return TabulatedProcess(config, alphas_cumprod)
