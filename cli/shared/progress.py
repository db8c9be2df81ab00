"""Progress with rate and ETA: a live line on a terminal, a plain line every 10 s elsewhere."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from diffusion.system.signals import check_signals

PLAIN_SECONDS = 10  # between lines in a log
RECENT = 60  # marks of the rate, at most one a second


ONE = {"images": "an image", "steps": "a step", "passes": "a pass", "bytes": "a byte"}


class Show(Protocol):
    """Shows the progress of some work."""

    def __call__(self, done: int, total: int, more: str = "", /) -> None:
        """Show `done` of `total`, and more text."""


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def pace(rate: float, unit: str) -> str:
    """Return a rate, such as 12 images/s, or 3.5 s an image below one a second."""
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s"
    return f"{1 / rate:,.{1 if rate > 0.1 else 0}f} s {ONE[unit]}"


class _Rate:
    """The text of the progress: ETA by the rate of the last minute, and at the end the mean rate.

    Work of an earlier run, before the first call, does not count in the rate.
    """

    def __init__(self, label: str, unit: str, per: int) -> None:
        self.label, self.unit, self.per = label, unit, per
        self.began = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.marks: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def line(self, done: int, total: int, more: str) -> str:
        """Return the current text."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        if not self.marks or now - self.marks[-1][0] >= 1:
            self.marks.append((now, done))
        since, start = self.first if done >= total else self.marks[0]
        rate = (done - start) / (now - since) if now > since else 0.0
        text = f"{self.label} {done:,}/{total:,}"
        if rate:
            text += f" · {pace(rate * self.per, self.unit)}"
        if done >= total:
            text += f" · took {now - self.began:.1f} s"
        elif rate:
            text += f" · ETA {clock((total - done) / rate)}"
        return f"{text} · {more}" if more else text


def _fitting(line: str) -> str:
    """Cut the line to the terminal, since a wrapped line cannot be redrawn."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return line
    return line[: columns - 1] if columns > 1 else line


def above(line: str) -> None:
    """Print a line on stderr above the live line, if any."""
    with contextlib.suppress(OSError):  # stderr was closed
        print(f"\r\033[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, unit: str = "images", per: int = 1) -> Iterator[Show]:
    """Yield a function to call with (done, total, more); one `done` is `per` units."""
    rate = _Rate(label, unit, per)
    live = sys.stderr.isatty()
    shown_at = 0.0 if live else time.monotonic()
    pending = ""

    def write(line: str, end: str) -> None:
        with contextlib.suppress(OSError):  # stderr was closed
            print(f"\r\033[K{line}" if live else line, end=end, file=sys.stderr, flush=True)

    def show(done: int, total: int, more: str = "") -> None:
        nonlocal shown_at, pending
        check_signals()
        pending = rate.line(done, total, more)
        if done < total and time.monotonic() - shown_at > (0.1 if live else PLAIN_SECONDS):
            shown_at = time.monotonic()
            write(_fitting(pending) if live else pending, end="" if live else "\n")
            pending = pending if live else ""

    try:
        yield show
    finally:
        if pending:
            write(pending, end="\n")
