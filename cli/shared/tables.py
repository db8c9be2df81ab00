"""Tables with aligned columns, of full width in files and pipes."""

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 250  # characters


def table(*columns: str) -> "Table":
    """Return a table with these headings and no borders."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def show(made: "Table") -> None:
    """Print the table."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(made)


def ago(milliseconds: int | None) -> str:
    """Return the time since a Unix time in milliseconds, in its largest unit."""
    return "" if milliseconds is None else f"{span(since(milliseconds))} ago"


def since(milliseconds: int) -> float:
    """Return the seconds since a Unix time in milliseconds, 0 for the future."""
    return max(0.0, time.time() - milliseconds / 1000)


def span(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
