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
def file_lock(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file for this process alone; LockBusy after `timeout` seconds, None waits for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if timeout is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _acquire(file.fileno(), path, time.monotonic() + max(timeout, LOOK_SECONDS))
        yield


def _acquire(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockBusy(f"another process holds {path}: wait for it to end") from None
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
