"""The process of flow matching (Lipman et al. 2023, 2210.02747): a straight line from the image to noise."""

from torch import Tensor

from diffusion.process.continuous_configs import FlowConfig
from diffusion.process.noise_process import NoiseProcess
from diffusion.system.devices import float64_device


class Flow(NoiseProcess):
    """x_t = (1 − t′)·x_0 + t′·ε with the shifted time t′ = s·t/(1 + (s − 1)·t), for t from 1e-5 to 1.

    At the end α is 0. Grids in σ lie between EDM's noise levels.
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
