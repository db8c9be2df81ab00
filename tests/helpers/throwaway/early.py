"""Training at small times more often than at large ones."""

from torch import Tensor

from diffusion.process.time_samplers import TimeSampler


class Early(TimeSampler):
    """t's place in the range is u²: half of the draws are in its first quarter."""

    def times(self, uniforms: Tensor) -> Tensor:
        """Return the times at the squares of uniform numbers."""
        return self.process.time_at(uniforms.square())
