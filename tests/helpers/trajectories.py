"""Trajectories along a grid with networks defined in tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from diffusion.process.denoiser import Condition, Denoiser, Network
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.sample.ddim import Ddim
from diffusion.sample.dpm_solver import DPMSolverMultistep
from diffusion.sample.sampler import Sampler, Step, run_sampler


def process_of(name: str, timesteps: int, **config: Any) -> NoiseProcess:
    """Return the process of that schedule, with default values for the rest."""
    return build_process(ProcessConfig(schedule=name, timesteps=timesteps, **config))


def grid_of(name: str, timesteps: int, times: Sequence[int] | None = None) -> TimeGrid:
    """Return the grid of some of a process's times, by default all."""
    return process_of(name, timesteps).grid(range(timesteps) if times is None else times)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Return float64 standard-normal numbers from the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_counts() -> Sequence[int]:
    """Return every S from 1 to 200 in the thorough profile, and some of them in the fast one."""
    return range(1, 201) if settings().max_examples > 100 else (*range(1, 12), 50, 199, 200)


class Draws:
    """A seeded source of float64 standard-normal numbers of one shape that counts its draws."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.source, self.count = shape, torch.Generator().manual_seed(0), 0

    def __call__(self) -> Tensor:
        self.count += 1
        return torch.randn(*self.shape, generator=self.source, dtype=torch.float64)


class OnGrid(DiscreteProcess):
    """A process defined only at a grid's own times."""

    def __init__(self, grid: TimeGrid) -> None:
        super().__init__(ProcessConfig(timesteps=max(2, int(grid.times[-1]) + 1)))
        self.known = grid

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.searchsorted(self.known.times, t)
        assert torch.equal(self.known.times[index], t)
        return self.known.alpha[index], self.known.sigma[index]


def network_denoiser(network: Network, grid: TimeGrid) -> NetworkDenoiser:
    """Return a denoiser of the network, which predicts ε, at the grid's times."""
    return NetworkDenoiser(network, OnGrid(grid))


def walk(
    denoiser: Denoiser,
    grid: TimeGrid,
    draw: Callable[[], Tensor],
    sampler: Sampler,
    condition: Condition | None = None,
    callback: Callable[[Step], object] | None = None,
) -> Tensor:
    """Return x_0 of a trajectory from the first draw."""
    x = draw()
    return run_sampler(sampler(grid, x, draw), denoiser, condition or Condition(len(x)), callback).x


def sample(
    network: Network,
    grid: TimeGrid,
    draw: Callable[[], Tensor],
    *,
    sampler: type[Ddim] | type[DPMSolverMultistep] = Ddim,
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> Tensor:
    """Return x_0 of a trajectory with a network of (x, t, labels) and the sampler's options."""
    return walk(network_denoiser(network, grid), grid, draw, sampler(**options), callback=callback)
