"""The common base of the figures of `diffctl show`, and numbers and tables as text for a terminal."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python
from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIXES = "kMGTPE"  # of powers of a thousand


@dataclass(frozen=True)
class FigureData(ABC):
    """The data of a figure, computed before anything is drawn, and its title in one line."""

    title: str

    @abstractmethod
    def draw(self) -> "Figure":
        """Draw the figure in the style of the report."""

    @abstractmethod
    def lines(self, width: int) -> list[str]:
        """Return the data as text tables with lines of at most `width` characters, at least 72."""

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON values, arrays as nested lists, infinity as null."""
        values = to_jsonable_python(self, inf_nan_mode="null", fallback=lambda array: array.tolist())
        return dict(values)


def format_quantity(amount: int) -> str:
    """Format a large number with three digits and a prefix: 831 k, 1.24 M, 103 G."""
    power = max(0, min(len(PREFIXES), (len(f"{float(f'{amount:.2e}'):.0f}") - 1) // 3))
    return f"{amount / 1000**power:.3g} {PREFIXES[power - 1]}" if power else str(amount)


def columns(rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    """Align rows of equal length in columns. The last `numbers` columns are aligned on the right."""
    widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    words = len(widths) - numbers
    lines = []
    for row in rows:
        padded = [
            set_cell_size(cell, width) if place < words else " " * (width - cell_len(cell)) + cell
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines
