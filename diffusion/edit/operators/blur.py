"""A Gaussian blur with reflected borders, diagonal in the discrete cosine transform (DCT-II).

Frequencies that the blur nearly erases cannot be restored from rounded pixels. Their singular values are set
to 0, and A is what is left.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.edit.operator import LinearOperator, Shape
from diffusion.protocol.edits import BlurOptions

MIN_SINGULAR_VALUE = 0.05  # pixels of 8 bits are then restored within 20 times their rounding
TRUNCATE = 4.0  # standard deviations of the kernel, as scipy.ndimage has it


class Blur(LinearOperator):
    """A = Dᵀ·diag(s)·D of the orthonormal DCT D, so A = Aᵀ; s is a product of rows' and columns' values."""

    def __init__(self, sigma: float, image_shape: Shape) -> None:
        _, height, width = image_shape
        self.text, self.image_shape, self.shape = f"blur:{sigma:g}", image_shape, image_shape
        self._rows, self._columns = _cosines(height), _cosines(width)
        values = _response(height, sigma)[:, None] * _response(width, sigma)
        self._values = torch.where(values >= MIN_SINGULAR_VALUE, values, 0.0)

    def apply(self, x: Tensor) -> Tensor:
        """Return the blurred image, without the frequencies that are cut."""
        return self.spectral(x, lambda s: s)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: A is symmetric."""
        return self.apply(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the image with each frequency divided by its singular value, if that is not 0."""
        return self.spectral(y, lambda s: torch.where(s > 0, 1 / s, 0.0))

    def spectral(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the image with its frequencies multiplied by the function of their singular values."""
        rows, columns, factors = (
            part.to(x.dtype).to(x.device) for part in (self._rows, self._columns, function(self._values))
        )
        return rows.T @ (factors * (rows @ x @ columns.T)) @ columns


def _cosines(size: int) -> Tensor:
    """Return the orthonormal DCT-II as a matrix (frequencies, pixels), float64."""
    angles = torch.arange(size, dtype=torch.float64)[:, None] * (torch.arange(size) + 0.5) * math.pi / size
    matrix = angles.cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _response(size: int, sigma: float) -> Tensor:
    """Return the singular values of the blur along one axis, one for each frequency, float64."""
    offsets = torch.arange(-int(TRUNCATE * sigma + 0.5), int(TRUNCATE * sigma + 0.5) + 1, dtype=torch.float64)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    frequencies = torch.arange(size, dtype=torch.float64) * math.pi / size
    return (frequencies[:, None] * offsets).cos() @ (kernel / kernel.sum())


def build(options: BlurOptions, image_shape: Shape) -> Blur:
    """Blur an image."""
    return Blur(options.sigma, image_shape)
