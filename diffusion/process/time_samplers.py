"""How training draws its times: the entries of TIME_DISTRIBUTIONS.

Each maps uniform numbers to times by the inverse of its distribution function, so that a step's draw depends
on the numbers alone, and stratified numbers give stratified times.
"""

from typing import Any

import torch
from torch import Tensor

from diffusion.process.discrete import require_discrete
from diffusion.process.loss_registry import TIME_DISTRIBUTIONS
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_options import NormalOptions
from diffusion.system.registry import load_reference

HISTORY = 10  # stored losses of each timestep
UNIFORM_SHARE = 0.001


class TimeSampler:
    """Draws times of a process: timesteps of a discrete process, else real ones. A subclass has `times`."""

    learns = False  # whether a draw depends on the losses of the steps before

    def __init__(self, process: NoiseProcess, options: Any = None) -> None:
        self.process, self.options = process, options

    def times(self, uniforms: Tensor) -> Tensor:
        """Return times (B,): the inverse distribution function at float64 numbers (B,) in [0, 1)."""
        raise NotImplementedError

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return times (B,) and the weights of their losses: 1, unless they correct the loss's mean."""
        return self.times(uniforms), torch.ones(len(uniforms))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Update the statistics with the losses (B,) at the times (B,); most samplers have none."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed training restores, in place."""
        return {}


class Uniform(TimeSampler):
    """t uniform over the process's range."""

    def times(self, uniforms: Tensor) -> Tensor:
        """Return ⌊u·T⌋ of a discrete process, else t_min + u·(t_max − t_min)."""
        return self.process.time_at(uniforms)


def normal_numbers(options: NormalOptions, uniforms: Tensor) -> Tensor:
    """Return mean + std·Φ⁻¹(u)."""
    numbers: Tensor = options.mean + options.std * torch.special.ndtri(uniforms)
    return numbers


class LogitNormal(TimeSampler):
    """t's place in the range is sigmoid(z), z ~ N(mean, std²) (Esser et al. 2024, 2403.03206, eq. 19)."""

    def times(self, uniforms: Tensor) -> Tensor:
        """Return the time at the share sigmoid(mean + std·Φ⁻¹(u)) of the range."""
        return self.process.time_at(normal_numbers(self.options, uniforms).sigmoid())


class LogNormal(TimeSampler):
    """ln σ/α ~ N(mean, std²), within the process's range of noise levels.

    On the process flow this is the skewed distribution of flow_matching's image example.
    """

    def times(self, uniforms: Tensor) -> Tensor:
        """Return the times of noise level exp(mean + std·Φ⁻¹(u)), the nearest whole ones if discrete."""
        times = self.process.times_at(normal_numbers(self.options, uniforms).exp())
        return times if self.process.timesteps is None else times.round().long()


class LossAware(TimeSampler):
    """p_t ∝ √E[L_t²] over the last 10 losses of each t, uniform until every t has 10 (iDDPM eq. 18)."""

    learns = True

    def __init__(self, process: NoiseProcess, options: Any = None) -> None:
        super().__init__(process, options)
        self.timesteps = require_discrete(process, "t_sampler loss-aware").timesteps
        self.losses = torch.zeros(self.timesteps, HISTORY, dtype=torch.float64)
        self.counts = torch.zeros(self.timesteps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """Return the probabilities (T,) float64 of the timesteps."""
        uniform = torch.full((self.timesteps,), 1 / self.timesteps, dtype=torch.float64)
        weights = self.losses.square().mean(1).sqrt()
        if (self.counts < HISTORY).any() or not weights.any():
            return uniform
        return (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE * uniform

    def times(self, uniforms: Tensor) -> Tensor:
        """Return the first t with a cumulative probability above u."""
        reached = self.probabilities().cumsum(0)
        return torch.searchsorted(reached / reached[-1], uniforms, right=True)

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return timesteps (B,) and the weights 1/(T·p_t) that keep the loss's mean unbiased."""
        t = self.times(uniforms)
        return t, (1 / (self.timesteps * self.probabilities()[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Store the losses (B,) at the timesteps (B,) in place of the oldest ones of each t."""
        for timestep, loss in zip(t.long().tolist(), losses.double().tolist(), strict=True):
            self.losses[timestep, self.counts[timestep] % HISTORY] = loss
            self.counts[timestep] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored losses and their counts."""
        return {"losses": self.losses, "counts": self.counts}


def build_time_sampler(process: NoiseProcess) -> TimeSampler:
    """Return the sampler of the process's `t_sampler`."""
    config = process.config
    entry = TIME_DISTRIBUTIONS[config.t_sampler]
    sampler: TimeSampler = load_reference(entry.builder)(process, entry.parse(config.t_sampler_options))
    return sampler


def default_time_sampler(process: NoiseProcess) -> TimeSampler:
    """Return the sampler that the process's section has by default, whatever this one selects.

    A validation loss uses it, so that models with different `t_sampler` are compared on the same times.
    """
    entry = TIME_DISTRIBUTIONS[type(process.config).model_fields["t_sampler"].default]
    sampler: TimeSampler = load_reference(entry.builder)(process, entry.parse({}))
    return sampler
