"""Memory that this process may use, as bytes and as text, and glibc's malloc for tensors and images."""

import ctypes
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST = 2**31 - 1  # the largest value of mallopt: practically never
BLOCKS = (2**30, 2**25)  # threshold of mapped blocks; older glibc versions allow 32 MB at most


def format_bytes(size: float) -> str:
    """Format a number of bytes of memory or of a disk."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def machine_memory() -> tuple[int, int]:
    """Return (total, free) bytes of the machine, or of its container if those are smaller."""
    import psutil

    memory, limit = psutil.virtual_memory(), cgroup_limit()
    return min(memory.total, limit), min(memory.available, limit)


def available_memory() -> int:
    """Return at most how many bytes this process may allocate beyond its and its children's use."""
    import psutil

    total, free = machine_memory()
    taken = 0
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            taken += process.memory_info().rss
    return min(free, total - taken)


def cgroup_limit(files: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return this process's memory limit by its control groups (cgroups(7), v1 and v2), or sys.maxsize."""
    limit = sys.maxsize
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        group, name = (files / "memory", "memory.limit_in_bytes") if controllers else (files, "memory.max")
        for part in ("", *Path(path).parts[1:]):
            group /= part
            with suppress(OSError, ValueError):  # no file, or `max`
                limit = min(limit, int((group / name).read_text(encoding="utf-8")))
    return limit


@lru_cache
def keep_freed_memory(device_type: str = "cpu") -> None:
    """Keep memory that CPU work frees for reuse by this process; do nothing for other devices.

    By default glibc returns large freed blocks to the kernel. New blocks are mapped again and cause page
    faults. It applies to the whole process and changes no result. Other allocators are unaffected.
    """
    if device_type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The block threshold first: setting one alone disables glibc's automatic adjustment of the other.
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in BLOCKS):
        mallopt(M_TRIM_THRESHOLD, LARGEST)
