"""Tables in the terminal: aligned columns, cut to nobody's width when they go into a file or a pipe."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 250  # characters
NARROWEST = 8  # characters a column: in fewer, nothing can be read any more


def table(*columns: str) -> "Table":
    """A table with these headings and no lines."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def show(made: "Table") -> None:
    """Print it to stdout, a line a cell where the terminal is too narrow for columns."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    width = console.width
    if width < NARROWEST * len(made.columns) and console.measure(made).maximum >= width:
        _show_cells(made)
    else:
        console.print(made)


def _show_cells(made: "Table") -> None:
    """Each row as lines of heading and value, empty cells left out."""
    for cells in zip(*(column.cells for column in made.columns), strict=True):
        for column, cell in zip(made.columns, cells, strict=True):
            if cell:
                print(f"{column.header} {cell}".strip())
        print()


def ago(milliseconds: int | None) -> str:
    """How long ago a moment in milliseconds since 1970 was, in its largest unit."""
    return "" if milliseconds is None else f"{span(since(milliseconds))} ago"


def since(milliseconds: int) -> float:
    """The seconds since a moment in milliseconds since 1970, 0 for one that is still to come."""
    return max(0.0, time.time() - milliseconds / 1000)


def span(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
