"""What commands print: progress with rate and ETA, and tables."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.table import Column, Table

from diffusion.system.signals import check_signals

LIVE_SECONDS, LOG_SECONDS = 0.1, 10  # between lines of progress, on a terminal and in a log
PIPE_WIDTH = 250  # characters of a table in a file or pipe


Show = Callable[..., None]
"""Shows the progress of some work; called with `done`, `total`, and more text."""


@contextmanager
def progress(label: str, unit: str = "images", per: int = 1) -> Iterator[Show]:
    """Yield a function to call with (done, total, more); one `done` is `per` units.

    It redraws a line on a terminal and prints lines elsewhere. Work of an earlier run, before the first call,
    does not count in the rate.
    """
    live, began = sys.stderr.isatty(), time.monotonic()
    first: tuple[float, int] | None = None
    shown_at, pending = 0.0 if live else began, ""

    def show(done: int, total: int, more: str = "") -> None:
        nonlocal first, shown_at, pending
        check_signals()
        now = time.monotonic()
        first = first or (now, done)
        rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
        parts = [f"{label} {done:,}/{total:,}"]
        if rate:
            units = rate * per
            parts.append(f"{units:,.0f} {unit}/s" if units >= 10 else f"{units:.2g} {unit}/s")
        if done >= total:
            parts.append(f"took {now - began:.1f} s")
        elif rate:
            parts.append(f"ETA {timedelta(seconds=round((total - done) / rate))}")
        pending = " · ".join([*parts, more] if more else parts)
        if done < total and now - shown_at > (LIVE_SECONDS if live else LOG_SECONDS):
            shown_at = now
            _write(_fit(pending) if live else pending, live, end="" if live else "\n")
            pending = pending if live else ""

    try:
        yield show
    finally:
        if pending:
            _write(pending, live)


def print_line(name: str, sentence: str) -> None:
    """Print a line with the name of its stage on stderr, above the live line if any."""
    _write(f"{name}: {sentence}", sys.stderr.isatty())


def _write(line: str, live: bool, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # stderr was closed
        print(f"\r\033[K{line}" if live else line, end=end, file=sys.stderr, flush=True)


def _fit(line: str) -> str:
    """Cut the line to the terminal, since a wrapped line cannot be redrawn."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return line
    return line[: columns - 1] if columns > 1 else line


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below these headings without borders, of full width in files and pipes."""
    headings = (Column(name, overflow="fold") for name in columns)
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
