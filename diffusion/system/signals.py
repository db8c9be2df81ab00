"""Ctrl-C and SIGTERM as a request to stop at the next safe place, where work is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffusion.system.errors import Interrupted


class StopRequest:
    """Remembers a signal; a second one of the same kind ends the process at once, as is usual.

    With `hold` that is so only from `let_go` on: who has others to tell first cannot be ended before.
    """

    def __init__(self, hold: bool = False) -> None:
        self.signal: int | None = None
        self._hold = hold

    def raise_if_set(self) -> None:
        """Interrupted with the signal's exit code (130, 143) when a stop was asked for."""
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(f"stopped by {name}, saved: the same command goes on from here", self.signal)

    def let_go(self) -> None:
        """From now on a further signal ends the process at once."""
        self._hold = False
        if self.signal is not None:
            signal.signal(self.signal, signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._hold:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_request(*, hold: bool = False) -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM inside the block; the previous handlers come back after it."""
    request = StopRequest(hold)
    previous = {number: signal.signal(number, request._receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
