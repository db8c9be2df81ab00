"""A GPU for one cell at a time: a lock for each device, which dies with its holders."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch

from diffusion.locks import LockBusy, file_lock, group_lock

FOLDER = (
    Path(tempfile.gettempdir()) / f"diffctl-{os.getuid()}" / "devices"
)  # of the machine, for all projects


@contextmanager
def held_device(
    waiting: Callable[[str], object] | None = None, group: str | None = None
) -> Iterator[torch.device]:
    """The first GPU that no other cell on this machine uses, held for the block; the CPU where there is none.

    While all are held it waits, and `waiting` is told so once. The CPU is shared: nobody waits for it. Who
    names a `group` shares the GPU with those who name the same.
    """
    gpus = {
        str(torch.cuda.get_device_properties(index).uuid): torch.device("cuda", index)
        for index in range(torch.cuda.device_count())
    }
    if not gpus:
        yield torch.device("cpu")
        return
    with held_lock(list(gpus), waiting, group) as name:
        yield gpus[name]


@contextmanager
def held_lock(
    names: Sequence[str],
    waiting: Callable[[str], object] | None = None,
    group: str | None = None,
) -> Iterator[str]:
    """The first of the named locks that is free, held for the block; waits until one is.

    Free is one for a `group`, too, that the same group holds.
    """

    def lock(path: Path) -> AbstractContextManager[None]:
        return file_lock(path, timeout=0) if group is None else group_lock(path, group)

    with ExitStack() as stack:
        while True:
            for name in names:
                try:
                    stack.enter_context(lock(FOLDER / f"{name}.lock"))
                except LockBusy:
                    continue
                yield name
                return
            if waiting:
                waiting("every GPU here is at work on another cell: waiting for one")
                waiting = None
