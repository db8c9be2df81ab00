"""Products of two operators that have a known pseudo-inverse."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.edit.operator import LinearOperator
from diffusion.protocol.edits import PRODUCT
from diffusion.system.errors import UsageError


class Product(LinearOperator):
    """The operator `outer` of the measurements of `inner`, whose rows are orthogonal.

    Then (A_2·A_1)⁺ = A_1⁺·A_2⁺, and the singular values are those of A_2 times the gain of A_1.
    """

    def __init__(self, inner: LinearOperator, outer: LinearOperator) -> None:
        self.text = f"{inner.text}{PRODUCT}{outer.text}"
        self.image_shape, self.shape = inner.image_shape, outer.shape
        self.gain = inner.gain * outer.gain
        self.has_orthogonal_rows = outer.has_orthogonal_rows
        self._inner, self._outer = inner, outer

    def apply(self, x: Tensor) -> Tensor:
        """Return A_2·A_1·x."""
        return self._outer.apply(self._inner.apply(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A_1ᵀ·A_2ᵀ·y."""
        return self._inner.adjoint(self._outer.adjoint(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A_1⁺·A_2⁺·y."""
        return self._inner.pseudo_inverse(self._outer.pseudo_inverse(y))

    def spectral(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the function of both: that of A_2 within the range of A_1ᵀ, and function(0) elsewhere."""
        of_null = float(function(torch.zeros(1, dtype=torch.float64)))
        measured = self._inner.apply(x)
        changed = (
            self._outer.spectral(measured, lambda s: function(s * self._inner.gain)) - of_null * measured
        )
        return of_null * x + self._inner.pseudo_inverse(changed)


def product(inner: LinearOperator, outer: LinearOperator) -> Product:
    """Return the product; UsageError unless the rows of `inner` are orthogonal."""
    if not inner.has_orthogonal_rows:
        raise UsageError(
            f"operator {inner.text}{PRODUCT}{outer.text}: its pseudo-inverse is not known: "
            "mask or blur must be the last factor, after gray and downsample"
        )
    return Product(inner, outer)
