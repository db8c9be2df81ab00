"""The C library's allocator, told to keep what tensors and images free.

By default glibc returns large freed blocks to the system and maps fresh ones, whose every page is cleared
at its first touch. A forward pass frees and asks for the same sizes again and again: kept, they cost nothing.
"""

import ctypes
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST = 2**31 - 1  # that mallopt takes: in effect never
BLOCKS = (2**30, 2**25)  # larger ones are mapped; older versions of glibc take 32 MB at most


def keep_freed_memory(device_type: str = "cpu") -> None:
    """Let this process keep the memory that work on a CPU frees, for what comes next; for others a no-op.

    It holds for the whole process and changes no result. Where the allocator is another one than glibc's,
    nothing happens.
    """
    if device_type == "cpu" and sys.platform == "linux":
        _keep()


@lru_cache
def _keep() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The threshold of blocks first: one alone would stop glibc from raising the other by itself.
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in BLOCKS):
        mallopt(M_TRIM_THRESHOLD, LARGEST)
