"""Memory of the machine that this process may use."""

import sys
from contextlib import suppress
from pathlib import Path


def machine_memory() -> tuple[int, int]:
    """Return (total, free) bytes of the machine, or of its container if those are smaller."""
    import psutil

    memory, limit = psutil.virtual_memory(), cgroup_limit()
    return min(memory.total, limit), min(memory.available, limit)


def available_memory() -> int:
    """Return the bytes that this process may allocate beyond its own use and that of its children.

    Other processes in the container are not counted, so that it is an upper bound there.
    """
    import psutil

    total, free = machine_memory()
    taken = 0
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            taken += process.memory_info().rss
    return min(free, total - taken)


def cgroup_limit(files: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory limit of this process's control group (cgroups(7), v1 and v2); sys.maxsize if none.

    Limits of parent groups apply too. A container may see its own group as the root.
    """
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
