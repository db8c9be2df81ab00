"""Ctrl-C, SIGTERM and a terminal's end: one flag a process, looked at at safe places or raised at once.

What is raised in the midst of code that is not ours may be swallowed there, so the flag stays set: who comes
to a safe place next finds it, and the command line does at the latest.
"""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from types import FrameType
from typing import Any

from diffusion.system.errors import Interrupted

FINISHED_STAYS = ": the same command goes on from what is finished"


class _Heed(Enum):
    """What a signal does beside setting the flag."""

    AT_ONCE = "Interrupted is raised where the work stands"
    LOOKED_AT = "nothing"
    HELD = "nothing, nor does a second Ctrl-C end the process"


class StopRequest:
    """The first signal that asked this process to stop. A second Ctrl-C ends it at once, as is usual.

    A further SIGTERM or SIGHUP says nothing new: shells and `timeout` send them twice. Nor does the first
    Ctrl-C after one of them: systemd tells all of a unit by SIGTERM, and a run passes its own on as SIGINT.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pressed = False
        self._heed = _Heed.LOOKED_AT

    def raise_if_set(self) -> None:
        """Interrupted with the exit code of the signal that asked for it, where all work is saved."""
        if self.signal is not None:
            raise interrupted(self.signal, ", saved: the same command goes on from here")

    def look(self) -> None:
        """As `raise_if_set`, for work whose finished parts are safe at any moment."""
        if self.signal is not None:
            raise interrupted(self.signal)

    def ask(self) -> bool:
        """Stop as SIGTERM would, of this process's own accord; False where a signal has asked before."""
        if self.signal is not None:
            return False
        self.signal = signal.SIGTERM
        return True

    def let_go(self) -> None:
        """From now on a second Ctrl-C ends the process at once, though it was held."""
        self._heed = _Heed.LOOKED_AT
        self._arm()

    def forget(self) -> None:
        """The stop was the usual end of what was done: it is nobody else's matter."""
        self.signal = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        self._pressed = self._pressed or number == signal.SIGINT
        self._arm()
        if first and self._heed is _Heed.AT_ONCE:
            raise interrupted(number)

    def _arm(self) -> None:
        if self._pressed and self.signal is not None and self._heed is not _Heed.HELD:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


_current: StopRequest | None = None  # of the outermost block


def stop_request(*, hold: bool = False) -> AbstractContextManager[StopRequest]:
    """Collect signals inside the block: the work looks at the request where it is safe to stop.

    With `hold` a second Ctrl-C ends the process from `let_go` on only: who has others to tell first cannot
    be ended before. The handlers from before come back after the block.
    """
    return _block(_Heed.HELD if hold else _Heed.LOOKED_AT)


def ended_by_signal() -> AbstractContextManager[StopRequest]:
    """Interrupted at once on a signal inside the block, also where a library has put handlers of its own.

    For work whose finished parts are safe at any moment. Leaving the block is a safe place, too.
    """
    return _block(_Heed.AT_ONCE)


def look() -> None:
    """Interrupted where a signal has come and what was raised of it was lost; nothing in `stop_request`."""
    if _current is not None and _current._heed is _Heed.AT_ONCE:
        _current.look()


@contextmanager
def _block(heed: _Heed) -> Iterator[StopRequest]:
    global _current
    outer, request = _current, _current or StopRequest()
    before, _current = request._heed, request
    handlers: dict[int, Any] = {}
    try:
        request._heed = heed
        for number in _heard():
            handlers[number] = signal.signal(number, request._receive)
        request._arm()
        look()
        yield request
        look()
        request._heed = before
        look()
    finally:
        request._heed, _current = before, outer
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if outer is not None:
            request._arm()


def _heard() -> list[int]:
    """The signals that ask to stop; not a terminal's end where `nohup` has it ignored."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


def interrupted(number: int, what: str = FINISHED_STAYS) -> Interrupted:
    """What the signal is as an exception."""
    return Interrupted(f"stopped by {signal.Signals(number).name}{what}", number)
