"""Selection of a device, transfers to it, and one GPU per cell or training by a lock."""

import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, file_lock, group_lock

LOCK_DIR = Path(tempfile.gettempdir()) / f"diffctl-devices-{os.getuid()}"  # per machine, for all projects

OnWait = Callable[[str], object]
"""Called once, with a sentence, when there is something to wait for."""

Check = Callable[[], object]
"""Called repeatedly while waiting; raises to stop."""

WITHOUT_FLOAT64 = ("mps",)  # device types
DEVICE_VARIABLE = "DIFFCTL_DEVICE"  # overrides the automatic choice
OOM_MARKS = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")


def device_kind() -> str:
    """Return cuda, mps or cpu: the first available, or DIFFCTL_DEVICE; UsageError if that one is not."""
    devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, is_available in devices.items() if is_available]
    wanted = os.environ.get(DEVICE_VARIABLE, available[0])
    if wanted not in available:
        there = " and ".join(available)
        raise UsageError(f"{DEVICE_VARIABLE} is {wanted}, and this machine or torch has {there}: unset it")
    return wanted


def default_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU; UsageError as `device_kind`."""
    return torch.device(device_kind())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is that the GPU's or the CPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in OOM_MARKS)


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 values of work on `device`: itself, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, copied from the CPU to a GPU asynchronously by pinned memory."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.contiguous().pin_memory()  # an expanded tensor cannot be pinned
    return tensor.to(device, non_blocking=device.type != "mps")  # MPS may read memory that was freed


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.processor()}, its GPU"
    name, count = platform.processor() or platform.machine(), torch.get_num_threads()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {count} thread{'s' * (count > 1)}"


@contextmanager
def acquire_device(
    waiting: OnWait | None = None, group: str | None = None, check: Check | None = None
) -> Iterator[torch.device]:
    """Hold the first free GPU of this machine for the block; yield the CPU if there is no GPU.

    While all are busy it waits, and calls `waiting` once. The CPU is shared without waiting. Processes that
    name the same `group` share a GPU.
    """
    gpus = _gpus()
    if not gpus:
        yield torch.device("cpu")
        return
    with acquire_lock(list(gpus), waiting, group, check) as name:
        yield gpus[name]


@contextmanager
def acquire_gpus(count: int, waiting: OnWait | None = None, check: Check | None = None) -> Iterator[None]:
    """Hold the first `count` CUDA GPUs for the block; do nothing without any, or on an Apple GPU."""
    with ExitStack() as stack:
        numbered = [name for name, device in _gpus().items() if device.type == "cuda"]
        for name in sorted(numbered[:count]):  # in one order for all processes, which prevents deadlocks
            stack.enter_context(acquire_lock([name], waiting, check=check))
        yield


def _gpus() -> dict[str, torch.device]:
    """Return the usable GPUs by UUID, since indices are per process. A Mac has one, `mps`."""
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
    names: Sequence[str], waiting: OnWait | None = None, group: str | None = None, check: Check | None = None
) -> Iterator[str]:
    """Hold the first free one of the named locks for the block; wait until one is free.

    A lock that the same `group` holds counts as free. DiffctlError if the locks' folder is another user's.
    """
    LOCK_DIR.mkdir(0o700, exist_ok=True)
    if (status := LOCK_DIR.lstat()).st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise DiffctlError(f"{LOCK_DIR} is not a folder of this user: remove it, or set another TMPDIR")
    lock = partial(file_lock, timeout=0) if group is None else partial(group_lock, group=group)
    with ExitStack() as stack:
        while True:
            for name in names:
                try:
                    stack.enter_context(lock(LOCK_DIR / f"{name}.lock"))
                except LockBusy:
                    continue
                yield name
                return
            if waiting:
                waiting("all GPUs are busy with another sweep or training: waiting for one")
                waiting = None
            if check:
                check()
