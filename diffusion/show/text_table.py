"""Figures in a terminal: curves by symbols, images by shades, points by braille. Text without colours."""

import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.images.pictures import to_pil
from diffusion.images.store import Images

SYMBOLS = "●○×+◆◇"
SHADES = " ░▒▓█"  # from black to white, as on a dark screen
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bits of a character, from the top
MOST_SIDE = 16  # pixels of an image in shades: two characters each, so that one is 32 wide

Line = tuple[NDArray[np.float64], NDArray[np.float64]]


class Axis(NamedTuple):
    """The range of an axis, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def place(self, values: NDArray[np.float64], cells: int) -> NDArray[np.int64]:
        """The cell of each value, 0 … cells − 1; what lies outside is in the nearest."""
        low, high, values = (
            (math.log(self.low), math.log(self.high), np.log(np.maximum(values, self.low)))
            if self.log
            else (self.low, self.high, values)
        )
        share = (values - low) / (high - low) if high > low else np.zeros_like(values)
        return np.asarray(np.clip(np.rint(share * (cells - 1)), 0, cells - 1), dtype=np.int64)


def plot(
    lines: Mapping[str, Line], width: int, height: int = 14, *, log_x: bool = False, about: str = ""
) -> list[str]:
    """Curves of (x, y), a symbol each, with the ends of both axes; what is not finite is left out."""
    finite = {name: _finite(*line) for name, line in lines.items()}
    x_axis = Axis(*_ends([x for x, _ in finite.values()]), log_x)
    y_axis = Axis(*_ends([y for _, y in finite.values()]))
    ticks = [f"{value:.3g}" for value in (y_axis.high, y_axis.low)]
    margin = max(map(len, ticks))
    cells = np.full((height, width - margin - 2), " ")
    for symbol, (x, y) in zip(SYMBOLS, finite.values(), strict=False):
        cells[height - 1 - y_axis.place(y, height), x_axis.place(x, cells.shape[1])] = symbol
    labels = [ticks[0], *[""] * (height - 2), ticks[1]]
    rows = [f"{label:>{margin}} │{''.join(row)}".rstrip() for label, row in zip(labels, cells, strict=True)]
    low, high = f"{x_axis.low:g}", f"{x_axis.high:g}"
    room = cells.shape[1] - len(low) - len(high)
    legend = "  ".join(f"{symbol} {name}" for symbol, name in zip(SYMBOLS, finite, strict=False))
    return [
        *([f"{about}    {legend}"] if about else [legend]),
        *rows,
        f"{'':>{margin}} └{'─' * cells.shape[1]}",
        f"{'':>{margin}}  {low}{'':{room}}{high}",
    ]


def _finite(x: NDArray[np.float64], y: NDArray[np.float64]) -> Line:
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _ends(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    joined = np.concatenate(values)
    return (float(np.min(joined)), float(np.max(joined))) if len(joined) else (0.0, 1.0)


def marks(values: NDArray[np.float64], axis: Axis, width: int) -> str:
    """Values on one line from end to end of the axis: │ for one, ┃ for two in a cell, █ for more."""
    counts = np.bincount(axis.place(values, width), minlength=width)
    return "".join("·│┃█"[min(3, int(count))] for count in counts)


def strip(images: Images, titles: Sequence[str], width: int) -> list[str]:
    """Images (N, H, W, C) in shades beside each other under their titles, in as many rows as that takes."""
    small = [_shaded(image) for image in images]
    each = max(2 * len(small[0][0]), *map(cells_of, titles)) + 2
    fitting = max(1, width // each)
    lines: list[str] = []
    for start in range(0, len(small), fitting):
        part = slice(start, start + fitting)
        lines.append("".join(padded(title, each) for title in titles[part]))
        rows = zip(*small[part], strict=True)
        lines += ["".join(padded("".join(c * 2 for c in pixels), each) for pixels in row) for row in rows]
        lines.append("")
    return [line.rstrip() for line in lines]


def cells_of(text: str) -> int:
    """How many cells of a terminal a text takes: marks above letters, as of x̂, take none."""
    return sum(not unicodedata.combining(one) for one in text)


def padded(text: str, width: int, *, left: bool = False) -> str:
    """The text in so many cells, with blanks after it, or `left` of it."""
    blanks = " " * (width - cells_of(text))
    return blanks + text if left else text + blanks


def _shaded(image: Images) -> list[str]:
    """The rows of an image (H, W, C), made small and grey, a shade a pixel."""
    picture = to_pil(image).convert("L")
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.BOX)
    levels = np.asarray(picture, dtype=np.int64) * len(SHADES) // 256
    return ["".join(SHADES[level] for level in row) for row in levels]


def columns(rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    """Rows of equally many cells in aligned columns, the first row their headings.

    The last `numbers` columns end alike, the others begin alike.
    """
    widths = [max(map(cells_of, cells)) for cells in zip(*rows, strict=True)]
    words = len(widths) - numbers
    return [
        "  ".join(
            padded(cell, width, left=place >= words)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def wrapped(words: Iterable[str], width: int, indent: int = 0) -> list[str]:
    """Words on as many indented lines as they take."""
    blanks = " " * indent
    return textwrap.wrap(" ".join(words), width, initial_indent=blanks, subsequent_indent=blanks)


def dots(points: NDArray[np.float64], edge: float, width: int, height: int) -> list[str]:
    """Points (N, 2) of the square from −edge to edge by braille, two by four dots a character."""
    inside = points[(np.abs(points) < edge).all(axis=1)]
    place = ((inside + edge) / (2 * edge) * [2 * width, 4 * height]).astype(int)
    cells = np.zeros((height, width), dtype=int)
    for x, y in place:
        down = 4 * height - 1 - y
        cells[down // 4, x // 2] |= BRAILLE[down % 4][x % 2]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
