"""The straight line from the image to noise, with an option of its own."""

from pydantic import Field
from torch import Tensor

from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ProcessConfig


class StraightConfig(ProcessConfig):
    """The noise at the last time is σ = `most`."""

    most: float = Field(default=1.0, gt=0, le=1)


class Straight(NoiseProcess):
    """α = 1 − u and σ = u, where u rises evenly to `most`."""

    config: StraightConfig

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of real times."""
        u = self.config.most * (t.double() + 1) / self.timesteps
        return 1 - u, u
