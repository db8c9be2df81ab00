"""Settings of glibc's malloc for tensors and images.

By default glibc returns large freed blocks to the kernel and maps new ones, whose pages fault at first use. A
forward pass frees and allocates equal sizes repeatedly; with these settings the memory is reused.
"""

import ctypes
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST = 2**31 - 1  # the largest value of mallopt: practically never
BLOCKS = (2**30, 2**25)  # threshold of mapped blocks; older glibc versions allow 32 MB at most


def keep_freed_memory(device_type: str = "cpu") -> None:
    """Keep memory that CPU work frees for reuse by this process; do nothing for other devices.

    It applies to the whole process and changes no result. Other allocators than glibc's are unaffected.
    """
    if device_type == "cpu" and sys.platform == "linux":
        _keep()


@lru_cache
def _keep() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The block threshold first: setting one alone disables glibc's automatic adjustment of the other.
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in BLOCKS):
        mallopt(M_TRIM_THRESHOLD, LARGEST)
