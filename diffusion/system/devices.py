"""Which device to use, and a GPU for one cell or training at a time by a lock that dies with its holders."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch

from diffusion.system.device_transfer import float64_device
from diffusion.system.errors import UsageError
from diffusion.system.locks import LockBusy, file_lock, group_lock
from diffusion.system.private_dir import make_private_dir

LOCK_DIR = Path(tempfile.gettempdir()) / f"diffctl-devices-{os.getuid()}"  # of the machine, for all projects

OnWait = Callable[[str], object]
"""Told once, in a sentence, that there is something to wait for."""

Check = Callable[[], object]
"""Called again and again while something is waited for; raises to stop that."""


DEVICE_VARIABLE = "DIFFCTL_DEVICE"  # the kind of device to use, where it is not to be the best there is


def device_kind() -> str:
    """`cuda`, `mps` (an Apple GPU) or `cpu`: the first that is there, or the one that DIFFCTL_DEVICE names.

    UsageError where that is none, or not there.
    """
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    wanted = os.environ.get(DEVICE_VARIABLE)
    if wanted is None:
        return next(kind for kind, is_there in there.items() if is_there())
    if wanted not in there:
        raise UsageError(f"{DEVICE_VARIABLE} is {wanted}: want one of {', '.join(there)}, or leave it out")
    if not there[wanted]():
        raise UsageError(
            f"{DEVICE_VARIABLE} asks for {wanted}, and this machine or torch has none: leave it out"
        )
    return wanted


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU; UsageError as `device_kind`."""
    return torch.device(device_kind())


def scoring_device() -> torch.device:
    """Where features and scores are computed: as `default_device`, but on no Apple GPU.

    Those have no float64, and nobody has seen their features agree with the published ones.
    """
    return float64_device(default_device())


@contextmanager
def acquire_device(
    waiting: OnWait | None = None, group: str | None = None, check: Check | None = None
) -> Iterator[torch.device]:
    """The first GPU that nobody else on this machine uses, held for the block; the CPU where there is none.

    While all are held it waits, and `waiting` is told so once. The CPU is shared: nobody waits for it. Who
    names a `group` shares the GPU with those who name the same.
    """
    gpus = _gpus()
    if not gpus:
        yield torch.device("cpu")
        return
    with acquire_lock(list(gpus), waiting, group, check) as name:
        yield gpus[name]


@contextmanager
def acquire_gpus(count: int, waiting: OnWait | None = None, check: Check | None = None) -> Iterator[None]:
    """Hold the first `count` GPUs for the block, as `acquire_device` holds one; nothing where there are none.

    None of Apple's: processes that train together are on several GPUs, or on the CPU.
    """
    with ExitStack() as stack:
        numbered = [name for name, device in _gpus().items() if device.type == "cuda"]
        for name in sorted(numbered[:count]):  # in one order for all, so that no two wait for each other
            stack.enter_context(acquire_lock([name], waiting, check=check))
        yield


def _gpus() -> dict[str, torch.device]:
    """The GPUs that this process may use, by UUID: their numbers are its own. A Mac has one, `mps`."""
    if device_kind() == "mps":
        return {"mps": torch.device("mps")}
    if device_kind() == "cpu":
        return {}
    return {
        str(torch.cuda.get_device_properties(index).uuid): torch.device("cuda", index)
        for index in range(torch.cuda.device_count())
    }


@contextmanager
def acquire_lock(
    names: Sequence[str],
    waiting: OnWait | None = None,
    group: str | None = None,
    check: Check | None = None,
) -> Iterator[str]:
    """The first of the named locks that is free, held for the block; waits until one is.

    Free is one for a `group`, too, that the same group holds. DiffctlError where another user could have put
    something into the locks' folder.
    """
    folder = make_private_dir(LOCK_DIR)

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
