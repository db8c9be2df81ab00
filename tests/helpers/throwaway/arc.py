"""The process of TrigFlow (Lu & Song 2024, 2410.11081): x_t = cos(t)·x_0 + sin(t)·ε."""

from pydantic import Field
from torch import Tensor

from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ContinuousConfig
from diffusion.system.devices import float64_device


class ArcConfig(ContinuousConfig):
    """The arc ends at the angle `end`; at π/2 only noise would be left."""

    end: float = Field(default=1.57, gt=0, le=1.57)


class Arc(NoiseProcess):
    """Times are angles; the velocity α·ε − σ·x_0 is the derivative of x_t."""

    config: ArcConfig

    def __init__(self, config: ArcConfig) -> None:
        super().__init__(config)
        self.t_min, self.t_max = 1e-3, config.end

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(t) and sin(t)."""
        t = t.to(float64_device(t.device)).double()
        return t.cos(), t.sin()

    def embedded_time(self, t: Tensor) -> Tensor:
        """Return the angle on the range 0 … 1000 of embeddings."""
        return 1000 * t / self.t_max
