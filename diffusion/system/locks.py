"""Locks between processes, by flock: one that is killed lets go at once, and no server is asked."""

import errno
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from diffusion.system.errors import DiffctlError

# Longer than `is_held` looks at a lock: who only looks never makes another one fail.
MIN_WAIT_SECONDS = 0.2
POLL_SECONDS = 0.02


class LockBusy(DiffctlError):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, timeout: float | None = None, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file for this process alone, and against other threads; it dies with its holder.

    LockBusy, saying `busy`, after `timeout` seconds; None waits for ever. DiffctlError where the folder
    cannot be written or its file system has no locks, and for a link. Its holder may delete the file: who
    waits for it then takes a new one.
    """
    with _held(path, partial(_locked, kind=fcntl.LOCK_EX), timeout, busy):
        yield


@contextmanager
def group_lock(
    path: Path, group: str, timeout: float | None = 0, busy: str | None = None, *, through_exec: bool = False
) -> Iterator[None]:
    """Hold the lock file together with all who name the same group; it dies with the last of them.

    LockBusy while another group or a `file_lock` holds it; `timeout`, `busy` and DiffctlError as there. With
    `through_exec` it is held also by the program that takes this process's place.
    """
    with _held(path, partial(_joined, group=group), timeout, busy, through_exec=through_exec):
        yield


def holding_group(path: Path) -> str | None:
    """The group that a `group_lock` holds the file with at this moment; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return None if _tried(path, partial(_locked, kind=fcntl.LOCK_EX), file) else file.read() or None
    except FileNotFoundError:
        return None


@contextmanager
def _held(
    path: Path,
    attempt: Callable[[IO[str]], bool],
    timeout: float | None,
    busy: str | None = None,
    *,
    through_exec: bool = False,
) -> Iterator[None]:
    """Hold the file that lies at `path` once `attempt` gets it; one that was deleted meanwhile is let go."""
    deadline = math.inf if timeout is None else time.monotonic() + max(timeout, MIN_WAIT_SECONDS)
    while True:
        with _opened(path) as file:
            os.set_inheritable(file.fileno(), through_exec)
            while not _tried(path, attempt, file):
                if time.monotonic() > deadline:
                    raise LockBusy(busy or f"another process holds {path}: wait for it to end")
                time.sleep(POLL_SECONDS)
            if _lies_at(path, file):
                yield
                return


def _tried(path: Path, attempt: Callable[[IO[str]], bool], file: IO[str]) -> bool:
    """What `attempt` says; DiffctlError where the file system knows no locks."""
    try:
        return attempt(file)
    except OSError as error:
        raise DiffctlError(
            f"{path} cannot be locked ({error.strerror}), so that two processes could spoil each other's "
            "work: put that folder on a local disk, or mount its file system with locks"
        ) from None


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DiffctlError(f"{path} is a link, and a lock is none: remove it") from None
        raise DiffctlError(f"cannot write in {path.parent}: {error.strerror}") from None
    return open(handle, "a+", encoding="utf-8")


def _lies_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _joined(file: IO[str], group: str) -> bool:
    """Whether the file is shared with the group now: the first one, while alone, writes the group's name.

    To write needs the file alone, so a name that is read while it is shared stays.
    """
    if _locked(file, fcntl.LOCK_EX):
        file.truncate(0)
        file.write(group)
        file.flush()
    if not _locked(file, fcntl.LOCK_SH):  # between the two locks another one may have come
        return False
    file.seek(0)
    if file.read() == group:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file at this moment; DiffctlError where nobody can know."""
    try:
        with open(path, encoding="utf-8") as file:
            return not _tried(path, partial(_locked, kind=fcntl.LOCK_SH), file)
    except FileNotFoundError:
        return False
