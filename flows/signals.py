"""Signals for work whose finished parts are safe at any moment: it ends where it stands."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from diffusion.system.errors import Interrupted


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Interrupted at once on SIGINT, SIGTERM or a terminal's end, also where asyncio would swallow them.

    `nohup` is respected. The previous handlers come back after the block.
    """
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None = None) -> NoReturn:
    """Raise Interrupted for the signal."""
    name = signal.Signals(number).name
    raise Interrupted(f"stopped by {name}: the same command goes on from what is finished", number)
