"""A lower resolution: a pixel of y is the mean of f×f pixels."""

from torch import Tensor
from torch.nn import functional

from diffusion.edit.operator import LinearOperator, Shape
from diffusion.images.image_size import format_pixels
from diffusion.protocol.edits import DownsampleOptions
from diffusion.system.errors import UsageError


class Downsample(LinearOperator):
    """The means of blocks; the singular value is 1/f."""

    has_orthogonal_rows = True

    def __init__(self, factor: int, image_shape: Shape) -> None:
        channels, height, width = image_shape
        if height % factor or width % factor:
            raise UsageError(
                f"downsample:{factor} does not divide {format_pixels((height, width))}: give a divisor"
            )
        self.text, self.gain, self._factor = f"downsample:{factor}", 1 / factor, factor
        self.image_shape, self.shape = image_shape, (channels, height // factor, width // factor)

    def apply(self, x: Tensor) -> Tensor:
        """Return the means."""
        return functional.avg_pool2d(x, self._factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return each pixel divided among its block."""
        repeated = y.repeat_interleave(self._factor, -2).repeat_interleave(self._factor, -1)
        return repeated / self._factor**2


def build(options: DownsampleOptions, image_shape: Shape) -> Downsample:
    """Average blocks of pixels."""
    return Downsample(options.factor, image_shape)
