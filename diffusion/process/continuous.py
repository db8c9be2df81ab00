"""Continuous processes: EDM, which adds noise to an image, and flow matching, a straight line to noise."""

import torch
from torch import Tensor

from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import EDMConfig, FlowConfig
from diffusion.system.devices import float64_device


class EDM(NoiseProcess):
    """x_t = x_0 + t·ε, where the time t is the noise level σ (Karras et al. 2022, 2206.00364, table 1).

    α = 1, and t goes from `sigma_min` to `sigma_max`.
    """

    config: EDMConfig

    def __init__(self, config: EDMConfig) -> None:
        super().__init__(config)
        self.t_min, self.t_max = config.sigma_min, config.sigma_max

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and t."""
        sigma = t.to(float64_device(t.device)).double()
        return torch.ones_like(sigma), sigma

    def times_at(self, levels: Tensor) -> Tensor:
        """Return the levels themselves, within the range of the process."""
        return levels.to(float64_device(levels.device)).double().clamp(self.t_min, self.t_max)

    def embedded_time(self, t: Tensor) -> Tensor:
        """Return 1000·c_noise = 250·ln σ: table 1's ln σ/4, on the scale of embeddings of 1,000 times."""
        return 250 * self.alpha_sigma(t)[1].log()


class Flow(NoiseProcess):
    """x_t = (1 − t′)·x_0 + t′·ε with the shifted time t′ = s·t/(1 + (s − 1)·t), for t from 1e-5 to 1.

    The source is Lipman et al. 2023 (2210.02747). At the end α is 0. Grids in σ are within EDM's levels.
    """

    config: FlowConfig
    t_min, t_max = 1e-5, 1.0  # σ is 0 nowhere
    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self._shift = 1.0 if config.shift == "auto" else config.shift

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 − t′ and t′."""
        t = t.to(float64_device(t.device)).double()
        scale = 1 + (self._shift - 1) * t
        return (1 - t) / scale, self._shift * t / scale

    def times_at(self, levels: Tensor) -> Tensor:
        """Return t = σ̄/(s + σ̄) of the noise level σ̄ = t′/(1 − t′)."""
        levels = levels.to(float64_device(levels.device)).double()
        return (1 / (1 + self._shift / levels)).clamp(self.t_min, self.t_max)

    def embedded_time(self, t: Tensor) -> Tensor:
        """Return 1000·t′."""
        return 1000 * self.alpha_sigma(t)[1]
