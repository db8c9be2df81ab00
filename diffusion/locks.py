"""Locks between processes, by flock: one that is killed lets go at once, and no server is asked."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.errors import DiffctlError

# Longer than `is_held` looks at a lock: who only looks never makes another one fail.
LOOK_SECONDS = 0.2
POLL_SECONDS = 0.02


class LockBusy(DiffctlError):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, timeout: float | None = None, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file for this process alone, and against other threads; it dies with its holder.

    LockBusy, saying `busy`, after `timeout` seconds; None waits for ever. DiffctlError where the folder
    cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below; its errors are the disk's)
    except OSError as error:
        raise DiffctlError(f"cannot write in {path.parent}: {error.strerror}") from None
    with file:
        if timeout is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            busy = busy or f"another process holds {path}: wait for it to end"
            _acquire(file.fileno(), time.monotonic() + max(timeout, LOOK_SECONDS), busy)
        yield


def _acquire(handle: int, deadline: float, busy: str) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockBusy(busy) from None
            time.sleep(POLL_SECONDS)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file at this moment."""
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
