"""Numbers and tables as text for a terminal."""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

PREFIXES = "kMGTP"  # of powers of a thousand


def format_quantity(amount: int) -> str:
    """Format a large number with three digits and a prefix: 831 k, 1.24 M, 103 G."""
    power = max(0, min(len(PREFIXES), (len(f"{float(f'{amount:.2e}'):.0f}") - 1) // 3))
    return f"{amount / 1000**power:.3g} {PREFIXES[power - 1]}" if power else str(amount)


def text_width(text: str) -> int:
    """Return the number of terminal columns of a text. Combining marks, as in x̂, take none."""
    return sum(not unicodedata.combining(one) for one in text)


def columns(rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    """Align rows of equal length in columns. The last `numbers` columns are aligned on the right."""
    widths = [max(map(text_width, cells)) for cells in zip(*rows, strict=True)]
    words = len(widths) - numbers
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - text_width(cell))
            cells.append(blanks + cell if place >= words else cell + blanks)
        lines.append("  ".join(cells).rstrip())
    return lines


def wrapped(words: Iterable[str], width: int, indent: int = 0) -> list[str]:
    """Wrap words into indented lines."""
    blanks = " " * indent
    return textwrap.wrap(" ".join(words), width, initial_indent=blanks, subsequent_indent=blanks)
