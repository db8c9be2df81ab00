"""Freed memory is reused instead of returned to the kernel."""

import platform
import subprocess
import sys

import pytest

# Page faults of allocating and freeing 64 MB ten times: a new mapping faults at every page.
FAULTS = """
import resource, torch
from diffusion.system.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], text=True, stdout=subprocess.PIPE, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_reused() -> None:
    assert faults(keep=True) * 100 < faults(keep=False)
