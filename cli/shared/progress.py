"""Progress with images/s and an ETA: a live line at a terminal, now and then a plain line elsewhere."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from diffusion.system.signals import check_signals

PLAIN_SECONDS = 10  # between lines where nobody watches live
RECENT = 60  # marks, at most one a second, that the rate looks back on


ONE = {"images": "an image", "steps": "a step", "passes": "a pass", "bytes": "a byte"}


class Show(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, done: int, total: int, more: str = "", /) -> None:
        """`done` of `total`, and what else to say."""


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def pace(rate: float, unit: str) -> str:
    """So many a second, as 12 images/s; where that is less than one, the time of each, as 3.5 s an image."""
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s"
    return f"{1 / rate:,.{1 if rate > 0.1 else 0}f} s {ONE[unit]}"


class _Rate:
    """Done, total, the time left by the rate of the last minute, and at the end the rate of all.

    What was done before the first call, in an earlier run, counts as done and not in a rate.
    """

    def __init__(self, label: str, unit: str, per: int) -> None:
        self.label, self.unit, self.per = label, unit, per
        self.began = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.marks: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def line(self, done: int, total: int, more: str) -> str:
        """What to show now."""
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
    """The line cut to the terminal: one that goes on below cannot be drawn over."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return line
    return line[: columns - 1] if columns > 1 else line


def above(line: str) -> None:
    """Write a line on stderr where a live line may stand, which is drawn again below it."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"\r\033[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, unit: str = "images", per: int = 1) -> Iterator[Show]:
    """Yield a function to call with (done, total, more); `per` is how many units one `done` counts."""
    rate = _Rate(label, unit, per)
    live = sys.stderr.isatty()
    shown_at = 0.0 if live else time.monotonic()
    unsaid = ""

    def say(line: str, end: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: the work goes on
            print(f"\r\033[K{line}" if live else line, end=end, file=sys.stderr, flush=True)

    def show(done: int, total: int, more: str = "") -> None:
        nonlocal shown_at, unsaid
        check_signals()
        unsaid = rate.line(done, total, more)
        if done < total and time.monotonic() - shown_at > (0.1 if live else PLAIN_SECONDS):
            shown_at = time.monotonic()
            say(_fitting(unsaid) if live else unsaid, end="" if live else "\n")
            unsaid = unsaid if live else ""

    try:
        yield show
    finally:
        if unsaid:
            say(unsaid, end="\n")
