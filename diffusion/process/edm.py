"""EDM's process (Karras et al. 2022, 2206.00364): x_t = x_0 + t·ε, where the time t is the noise level σ."""

import torch
from torch import Tensor

from diffusion.process.continuous_configs import EDMConfig
from diffusion.process.noise_process import NoiseProcess
from diffusion.system.devices import float64_device


class EDM(NoiseProcess):
    """α = 1 and σ = t, from `sigma_min` to `sigma_max` (table 1, σ(t) = t and s(t) = 1)."""

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
