"""Linear operators A with their pseudo-inverses and singular values, and measurements y = A·x_0 + σ_y·n."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from diffusion.images.image_size import format_pixels, format_size
from diffusion.protocol.edits import (
    OPERATORS,
    PRODUCT,
    BlurOptions,
    DownsampleOptions,
    MaskOptions,
    parse_operator,
)
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference
from diffusion.system.section import NoOptions

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


class Mask(LinearOperator):
    """A·x is 0, mid-grey, except where `kept` (H, W) is True, in all channels.

    `box` is the text of a box.
    """

    def __init__(self, kept: Tensor, image_shape: Shape, box: str | None = None) -> None:
        if kept.shape != image_shape[1:]:
            found, wanted = format_pixels(kept.shape), format_size(image_shape[1:])
            raise UsageError(f"the mask has {found}, the images {wanted}: resize it")
        if not kept.any() or kept.all():
            found = "hides no pixel" if kept.all() else "hides every pixel"
            raise UsageError(f"the mask {found}: white, or transparent, are the pixels to fill")
        digest = hashlib.sha256(kept.cpu().numpy().tobytes()).hexdigest()
        self.text = f"mask:{box or digest[:16]}"
        self.image_shape = self.shape = image_shape
        self.kept = kept

    def apply(self, x: Tensor) -> Tensor:
        """Return x with 0 at hidden pixels."""
        return torch.where(self.kept.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: A is a projection."""
        return self.apply(y)


def build_mask(options: MaskOptions, image_shape: Shape) -> Mask:
    """Hide a box of pixels: y has 0, mid-grey, in their place."""
    _, height, width = image_shape
    if options.box is None:
        raise UsageError(
            "operator mask needs the hidden pixels: give mask:LEFT,TOP,RIGHT,BOTTOM or a picture"
        )
    left, top, right, bottom = map(int, options.box.split(","))
    pixels = format_pixels((height, width))
    if not (left < right <= width and top < bottom <= height):
        raise UsageError(f"mask:{options.box} is no box in {pixels}: give LEFT,TOP,RIGHT,BOTTOM")
    if (left, top, right, bottom) == (0, 0, width, height):
        raise UsageError(f"mask:{options.box} hides every pixel of {pixels}: give a smaller box")
    kept = torch.ones(height, width, dtype=torch.bool)
    kept[top:bottom, left:right] = False
    return Mask(kept, image_shape, options.box)


class Downsample(LinearOperator):
    """A lower resolution: a pixel of y is the mean of f×f pixels. The singular value is 1/f."""

    has_orthogonal_rows = True

    def __init__(self, options: DownsampleOptions, image_shape: Shape) -> None:
        factor, (channels, height, width) = options.factor, image_shape
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


LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


class Gray(LinearOperator):
    """The luma 0.299·R + 0.587·G + 0.114·B (ITU-R BT.601), as Pillow's mode L has it.

    The singular value is the length of its weights.
    """

    has_orthogonal_rows = True

    def __init__(self, options: NoOptions, image_shape: Shape) -> None:
        channels, height, width = image_shape
        if channels != len(LUMA):
            raise UsageError(f"gray needs images with 3 channels (got {channels}): leave it out")
        self.text, self.gain = "gray", float(LUMA.norm())
        self.image_shape, self.shape = image_shape, (1, height, width)

    def apply(self, x: Tensor) -> Tensor:
        """Return the luma."""
        return (x * _weights(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the luma times each channel's weight."""
        return y * _weights(y)


def _weights(like: Tensor) -> Tensor:
    return LUMA.to(like.dtype).to(like.device).reshape(1, -1, 1, 1)


MIN_SINGULAR_VALUE = 0.05  # pixels of 8 bits are then restored within 20 times their rounding
TRUNCATE = 4.0  # standard deviations of the kernel, as scipy.ndimage has it


class Blur(LinearOperator):
    """A Gaussian blur with reflected borders, diagonal in the orthonormal cosine transform D (DCT-II).

    A = Dᵀ·diag(s)·D = Aᵀ, and s is a product of rows' and columns' values. Frequencies that the blur nearly
    erases cannot be restored from rounded pixels: their singular values are set to 0, and A is what is left.
    """

    def __init__(self, options: BlurOptions, image_shape: Shape) -> None:
        sigma, (_, height, width) = options.sigma, image_shape
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


class Product(LinearOperator):
    """The operator `outer` of the measurements of `inner`, whose rows are orthogonal.

    Then (A_2·A_1)⁺ = A_1⁺·A_2⁺, and the singular values are those of A_2 times the gain of A_1.
    """

    def __init__(self, inner: LinearOperator, outer: LinearOperator) -> None:
        if not inner.has_orthogonal_rows:
            raise UsageError(
                f"operator {inner.text}{PRODUCT}{outer.text}: its pseudo-inverse is not known: "
                "mask or blur must be the last factor, after gray and downsample"
            )
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


@dataclass(frozen=True, eq=False)
class Measurement:
    """`y` (B, *operator.shape) with noise of deviation `sigma`; without an operator pictures (B, C, H, W)."""

    operator: LinearOperator | None
    y: Tensor
    sigma: float = 0.0

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: slice | Tensor) -> "Measurement":
        """Return the measurements of some of the images."""
        return replace(self, y=self.y[index])

    def to(self, device: torch.device) -> "Measurement":
        """Return the same on a device."""
        return replace(self, y=self.y.to(device))

    @property
    def image_shape(self) -> Shape:
        """The shape of an edited image."""
        if self.operator is not None:
            return self.operator.image_shape
        _, channels, height, width = self.y.shape
        return channels, height, width


def build_operator(text: str, image_shape: Shape, kept: Tensor | None = None) -> LinearOperator:
    """Return the operator of a text form for images of a shape; `kept` (H, W) is a mask that is a picture.

    UsageError if it does not fit the shape, and for a product without a known pseudo-inverse.
    """
    try:
        factors = parse_operator(text)
    except ValueError as error:
        raise UsageError(f"operator {text:.120}: {error}") from None
    whole: LinearOperator | None = None
    for name, values in factors:
        entry, shape = OPERATORS[name], image_shape if whole is None else whole.shape
        factor: LinearOperator
        if name == "mask" and kept is not None:
            factor = Mask(kept, shape)
        else:
            factor = load_reference(entry.builder)(entry.parse(values), shape)
        whole = factor if whole is None else Product(whole, factor)
    assert whole is not None, "a text has at least one factor"
    return whole
