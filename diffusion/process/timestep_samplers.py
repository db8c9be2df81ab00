"""How training draws its timesteps: uniformly, or by the losses seen at each (iDDPM eq. 18)."""

from collections.abc import Mapping

import torch
from torch import Tensor

HISTORY = 10  # losses remembered of each timestep
UNIFORM_SHARE = 0.001


class UniformSampler:
    """t uniform over 0 … T−1, all weights 1."""

    learns = False  # whether a draw depends on the losses of the steps before

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) timesteps and the weights 1/(T·p_t) that keep the loss's mean unbiased.

        A timestep is the inverse of the distribution's function at one of the (B,) float64 numbers in [0, 1).
        """
        return (uniforms * self.timesteps).long(), torch.ones(len(uniforms))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to resume."""


class LossAwareSampler(UniformSampler):
    """p_t ∝ √E[L_t²] over the last 10 losses of each t, uniform until every t has 10 (iDDPM eq. 18)."""

    learns = True

    def __init__(self, timesteps: int) -> None:
        super().__init__(timesteps)
        self.losses = torch.zeros(timesteps, HISTORY, dtype=torch.float64)
        self.counts = torch.zeros(timesteps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """(T,) float64 probabilities."""
        uniform = torch.full((self.timesteps,), 1 / self.timesteps, dtype=torch.float64)
        weights = self.losses.square().mean(1).sqrt()
        if (self.counts < HISTORY).any() or not weights.any():
            return uniform
        return (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE * uniform

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) timesteps and the weights 1/(T·p_t) that keep the loss's mean unbiased, as UniformSampler."""
        p = self.probabilities()
        reached = p.cumsum(0)
        t = torch.searchsorted(reached / reached[-1], uniforms, right=True)
        return t, (1 / (self.timesteps * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember the (B,) losses at the (B,) timesteps, the oldest of each t forgotten first."""
        for timestep, loss in zip(t.tolist(), losses.double().tolist(), strict=True):
            self.losses[timestep, self.counts[timestep] % HISTORY] = loss
            self.counts[timestep] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the remembered losses and their counts."""
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict`'s tensors."""
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()


T_SAMPLERS: dict[str, type[UniformSampler]] = {"uniform": UniformSampler, "loss-aware": LossAwareSampler}
"""The samplers by name (`process.t_sampler`); each is constructed with T."""
