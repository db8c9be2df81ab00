"""Freed memory is reused instead of returned to the kernel."""

import platform
from pathlib import Path

import pytest

from tests.conftest import run_python

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


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_reused(tmp_path: Path) -> None:
    kept, freed = (run_python(tmp_path, "-c", FAULTS.format(keep=keep)).stdout for keep in (True, False))
    assert int(kept) * 100 < int(freed)
