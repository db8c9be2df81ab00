"""Signals: Ctrl-C, SIGTERM and a closed terminal set one flag per process.

The work either checks the flag where it is safe to stop, or gets an exception at once. A library may swallow
such an exception. So the flag stays set, and the next `check_signals` raises again.
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Literal

from diffusion.system.errors import Interrupted

FINISHED_STAYS = ": the same command resumes after the finished parts"

# Besides setting the flag, a signal raises Interrupted at once, or does nothing. With "hold" a second Ctrl-C
# does not end the process either.
SignalMode = Literal["raise", "poll", "hold"]

PATIENCE = "DIFFCTL_PATIENCE"  # set by a supervisor: seconds from its signal to the next, stronger one
DEFAULT_PATIENCE = 60.0


class StopRequest:
    """The first signal that requested a stop. A second Ctrl-C ends the process at once.

    Other repeated signals have no effect: shells and `timeout` send SIGTERM twice. The first Ctrl-C after a
    SIGTERM has none either: systemd signals all processes of a unit, and `run` forwards its own as SIGINT.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.received_at = 0.0  # by the monotonic clock
        self._pressed = False
        self._mode: SignalMode = "poll"

    def raise_if_set(self) -> None:
        """Raise Interrupted if a stop was requested; call it after all work is saved."""
        if self.signal is not None:
            raise make_interrupted(self.signal, ", saved: the same command resumes here")

    def request(self) -> bool:
        """Request a stop as SIGTERM does; return False if a signal did so before."""
        if self.signal is not None:
            return False
        self.signal, self.received_at = signal.SIGTERM, time.monotonic()
        return True

    def release(self) -> None:
        """Stop holding: from now on a second Ctrl-C ends the process at once."""
        self._mode = "poll"
        self._arm()

    def clear(self) -> None:
        """Clear the request, where a stop is the usual end of the work."""
        self.signal = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        if first:
            self.signal, self.received_at = number, time.monotonic()
        self._pressed = self._pressed or number == signal.SIGINT
        self._arm()
        if first and self._mode == "raise":
            raise make_interrupted(number)

    def _arm(self) -> None:
        """Restore the default action of Ctrl-C after the first one."""
        if self._pressed and self.signal is not None and self._mode != "hold":
            signal.signal(signal.SIGINT, signal.SIG_DFL)


_current: StopRequest | None = None  # of the outermost block


def stop_request(*, hold: bool = False) -> AbstractContextManager[StopRequest]:
    """Collect signals inside the block; the work checks the request where it is safe to stop.

    With `hold`, a second Ctrl-C ends the process only after `release`: for a parent that must stop its
    children first. The previous handlers are restored after the block.
    """
    return _block("hold" if hold else "poll")


def interrupt_on_signal() -> AbstractContextManager[StopRequest]:
    """Raise Interrupted at once on a signal inside the block, also if a library set its own handlers.

    For work that is safe to stop at any moment. Leaving the block checks the flag once more.
    """
    return _block("raise")


def check_signals() -> None:
    """Raise Interrupted if an earlier one was swallowed; do nothing in `stop_request`."""
    if _current is not None and _current._mode == "raise" and _current.signal is not None:
        raise make_interrupted(_current.signal)


def patience_left() -> float:
    """Return the seconds before a received signal's sender may kill this process; infinity without one."""
    if _current is None or _current.signal is None:
        return math.inf
    return _current.received_at + float(os.environ.get(PATIENCE, DEFAULT_PATIENCE)) - time.monotonic()


@contextmanager
def _block(mode: SignalMode) -> Iterator[StopRequest]:
    global _current
    outer, request = _current, _current or StopRequest()
    before, _current = request._mode, request
    handlers: dict[int, Any] = {}
    # Without SIGHUP where `nohup` ignores it.
    hangup: list[int] = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    try:
        request._mode = mode
        for number in [*hangup, signal.SIGINT, signal.SIGTERM]:
            handlers[number] = signal.signal(number, request._receive)
        request._arm()
        check_signals()
        yield request
        check_signals()
        request._mode = before
        check_signals()
    finally:
        request._mode, _current = before, outer
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if outer is not None:
            request._arm()


def make_interrupted(number: int, what: str = FINISHED_STAYS) -> Interrupted:
    """Return the exception for a signal."""
    return Interrupted(f"stopped by {signal.Signals(number).name}{what}", number)
