"""Locks between processes, by flock: the kernel releases the lock of a killed process at once."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from diffusion.system.errors import DiffctlError

# Longer than `is_held` probes a lock, so that a probe never makes another process fail.
MIN_WAIT_SECONDS = 0.2
POLL_SECONDS = 0.02


class LockBusy(DiffctlError):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, timeout: float | None = None, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file exclusively, also against other threads; it ends with the process.

    LockBusy, with the text `busy`, after `timeout` seconds; None waits forever. DiffctlError if the folder is
    not writable, its file system has no locks, or the file is a link. The holder may delete the file: a
    waiting process then creates a new one.
    """
    wait = -1 if timeout is None else max(timeout, MIN_WAIT_SECONDS)
    lock = FileLock(path, wait, poll_interval=POLL_SECONDS, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise LockBusy(busy or _busy(path)) from None
    except OSError as error:
        raise _lock_error(path, error) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def group_lock(
    path: Path, group: str, timeout: float = 0, busy: str | None = None, *, through_exec: bool = False
) -> Iterator[None]:
    """Hold the lock file together with all processes that name the same group; it ends with the last one.

    LockBusy while another group or a `file_lock` holds it; `timeout`, `busy` and DiffctlError as there. With
    `through_exec` the program that replaces this process inherits the lock.
    """
    deadline = time.monotonic() + max(timeout, MIN_WAIT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _lock_error(path, error) from None
    with file:
        os.set_inheritable(file.fileno(), through_exec)
        while not _join(path, file, group):
            if time.monotonic() > deadline:
                raise LockBusy(busy or _busy(path))
            time.sleep(POLL_SECONDS)
        yield


def holding_group(path: Path) -> str | None:
    """Return the group that holds the file by `group_lock` at this moment, or None."""
    try:
        # Writable, as an exclusive lock requires on NFS.
        with open(path, "r+", encoding="utf-8", errors="replace") as file:
            return None if _flock(path, file, fcntl.LOCK_EX) else file.read() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _lock_error(path, error) from None


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file at this moment; DiffctlError without locks."""
    try:
        with open(path, encoding="utf-8") as file:
            return not _flock(path, file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _busy(path: Path) -> str:
    return f"another process holds {path}: wait for it to end"


def _lock_error(path: Path, error: OSError) -> DiffctlError:
    if error.filename is not None:  # from the folder or the file itself
        return DiffctlError(f"cannot write in {path.parent}: {error.strerror}")
    why = f"{path} cannot be locked ({error.strerror})"
    return DiffctlError(f"{why}: put that folder on a local disk, or mount its file system with locks")


def _flock(path: Path, file: IO[str], kind: int) -> bool:
    """Try to lock the file without waiting; DiffctlError if the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _lock_error(path, error) from None
    return True


def _join(path: Path, file: IO[str], group: str) -> bool:
    """Return whether the group now shares the lock. The first process, while alone, writes the group's name.

    Writing requires an exclusive lock, so that a name read under a shared lock is valid.
    """
    if _flock(path, file, fcntl.LOCK_EX):
        file.truncate(0)
        file.write(group)
        file.flush()
    if not _flock(path, file, fcntl.LOCK_SH):  # another process may have come between the two locks
        return False
    file.seek(0)
    if file.read() == group:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
