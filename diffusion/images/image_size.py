"""The size of images: the side of a square, else height and width.

Sections, files and cards have a number where images are square.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from diffusion.system.section import Side

IN_CODE_DIGEST = False  # diffusion/code_digest.py

Size = tuple[int, int]
"""Height and width in pixels."""


def written_size(size: int | Sequence[int]) -> int | Size:
    """Return the side of a square, else height and width: the form in sections and files."""
    height, width = height_and_width(size)
    return height if height == width else (height, width)


def height_and_width(size: int | Sequence[int]) -> Size:
    """Return height and width of a size in either form."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def format_size(size: int | Sequence[int]) -> str:
    """Return height, width and any further numbers as text: 28×28, 32×32×3."""
    return "×".join(map(str, height_and_width(size) if isinstance(size, int) else size))


def format_pixels(size: int | Sequence[int]) -> str:
    """Return "28×28 pixels", with the order of the numbers if they differ."""
    height, width = height_and_width(size)
    return f"{format_size(size)} pixels{'' if height == width else ' (height × width)'}"


def _form(value: Any) -> str:
    return "[height, width]" if isinstance(value, list | tuple) else "int"


_Pair = Annotated[tuple[Side, ...], Field(min_length=2, max_length=2)]
ImageSize = Annotated[
    Annotated[Side, Tag("int")] | Annotated[_Pair, Tag("[height, width]")],
    Discriminator(_form),
    AfterValidator(written_size),
]
"""A size in a section: a side, or [height, width], which becomes a side if both are equal."""
