"""Linear operators A of measurements y = A·x_0 + σ_y·n, with their pseudo-inverses and singular values."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


class LinearOperator(ABC):
    """A, from images (B, *image_shape) to measurements (B, *shape), with a singular value `gain`.

    All singular values are `gain` or 0, unless a subclass defines `spectral` and `pseudo_inverse`. With
    `has_orthogonal_rows` none is 0 on measurements: A·Aᵀ = gain²·I. `text` is the text form.
    """

    text: str
    image_shape: Shape
    shape: Shape
    gain: float = 1.0
    has_orthogonal_rows = False

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return A·x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ·y."""

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A⁺·y."""
        inverse: Tensor = self.adjoint(y) / self.gain**2
        return inverse

    def spectral(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return V·diag(function(s))·Vᵀ·x for the SVD A = U·diag(s)·Vᵀ; s is 0 on the null space."""
        factors: list[float] = function(torch.tensor([0.0, self.gain], dtype=torch.float64)).tolist()
        of_null, of_range = factors
        return of_null * x + (of_range - of_null) * self.pseudo_inverse(self.apply(x))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Return A⁺·y + (I − A⁺A)·x, the nearest image to x with the measurement y (2212.00490, eq. 10)."""
        return x + self.pseudo_inverse(y - self.apply(x))
