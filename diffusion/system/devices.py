"""Which device to use, and a GPU for one cell or training at a time by a lock that dies with its holders."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch

from diffusion.system.locks import LockBusy, file_lock, group_lock
from diffusion.system.private import private_folder

FOLDER = Path(tempfile.gettempdir()) / f"diffctl-devices-{os.getuid()}"  # of the machine, for all projects

Waiting = Callable[[str], object]
"""Told once, in a sentence, that there is something to wait for."""

Check = Callable[[], object]
"""Called again and again while something is waited for; raises to stop that."""


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def held_device(
    waiting: Waiting | None = None, group: str | None = None, check: Check | None = None
) -> Iterator[torch.device]:
    """The first GPU that nobody else on this machine uses, held for the block; the CPU where there is none.

    While all are held it waits, and `waiting` is told so once. The CPU is shared: nobody waits for it. Who
    names a `group` shares the GPU with those who name the same.
    """
    gpus = _gpus()
    if not gpus:
        yield torch.device("cpu")
        return
    with held_lock(list(gpus), waiting, group, check) as name:
        yield gpus[name]


@contextmanager
def held_gpus(count: int, waiting: Waiting | None = None, check: Check | None = None) -> Iterator[None]:
    """Hold the first `count` GPUs for the block, as `held_device` holds one; nothing where there are none."""
    with ExitStack() as stack:
        for name in sorted(list(_gpus())[:count]):  # in one order for all, so that no two wait for each other
            stack.enter_context(held_lock([name], waiting, check=check))
        yield


def _gpus() -> dict[str, torch.device]:
    """The GPUs that this process sees, by UUID: their numbers are its own."""
    return {
        str(torch.cuda.get_device_properties(index).uuid): torch.device("cuda", index)
        for index in range(torch.cuda.device_count())
    }


@contextmanager
def held_lock(
    names: Sequence[str],
    waiting: Waiting | None = None,
    group: str | None = None,
    check: Check | None = None,
) -> Iterator[str]:
    """The first of the named locks that is free, held for the block; waits until one is.

    Free is one for a `group`, too, that the same group holds. DiffctlError where another user could have put
    something into the locks' folder.
    """
    folder = private_folder(FOLDER)

    def lock(path: Path) -> AbstractContextManager[None]:
        return file_lock(path, timeout=0) if group is None else group_lock(path, group)

    with ExitStack() as stack:
        while True:
            for name in names:
                try:
                    stack.enter_context(lock(folder / f"{name}.lock"))
                except LockBusy:
                    continue
                yield name
                return
            if waiting:
                waiting("every GPU that would do is at work for another sweep or training: waiting for one")
                waiting = None
            if check:
                check()
