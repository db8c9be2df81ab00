"""Processes by id and start time, groups that are ended, prefetching threads, and reuse of freed memory."""

import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.noise import ImageNoise
from diffusion.system.processes import group_processes, start_time, terminate
from diffusion.system.threads import PREFETCH_NAME, prefetch, prefetched_draws
from tests.conftest import run_python, start_python
from tests.helpers.waiting import wait_until

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(60)
"""
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
CPU = torch.device("cpu")


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = start_python(tmp_path, "-c", STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_start_time_identifies_a_process_until_it_ends(stubborn: "subprocess.Popen[str]") -> None:
    assert start_time(stubborn.pid) == start_time(stubborn.pid) != start_time(os.getppid())
    stubborn.kill()
    wait_until(lambda: start_time(stubborn.pid) is None)  # a zombie
    stubborn.wait()
    assert start_time(stubborn.pid) is None


def test_group_that_ignores_sigterm_is_killed(stubborn: "subprocess.Popen[str]") -> None:
    (member,) = group_processes(stubborn.pid)
    assert member.pid == stubborn.pid
    terminate([member], grace=0.1)
    assert group_processes(stubborn.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_reused(tmp_path: Path) -> None:
    kept, freed = (run_python(tmp_path, "-c", FAULTS.format(keep=keep)).stdout for keep in (True, False))
    assert int(kept) * 100 < int(freed)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(PREFETCH_NAME)]


@given(st.integers(0, 6), st.integers(0, 9))
def test_prefetched_draws_equal_direct_draws(count: int, calls: int) -> None:
    noise, same = ImageNoise(3, [0, 7], (1, 2, 2)), ImageNoise(3, [0, 7], (1, 2, 2))
    with prefetched_draws(noise.draw, count, CPU) as draw:
        assert all(torch.equal(draw(), same.draw()) for _ in range(calls))
    assert not prefetch_threads()


def test_next_draw_is_computed_before_it_is_requested() -> None:
    second = threading.Event()
    drawn = []

    def draw() -> torch.Tensor:
        drawn.append(len(drawn))
        if len(drawn) == 2:
            second.set()
        return torch.zeros(1)

    with prefetched_draws(draw, 5, CPU) as next_draw:
        next_draw()
        assert second.wait(30)
    assert drawn == [0, 1]


def test_failed_draw_raises_in_its_place() -> None:
    values = iter([1.0, 2.0])

    def draw() -> torch.Tensor:
        value = next(values, None)
        if value is None:
            raise MemoryError
        return torch.tensor(value)

    with prefetched_draws(draw, 9, CPU) as next_draw:
        assert [float(next_draw()), float(next_draw())] == [1, 2]
        with pytest.raises(MemoryError):
            next_draw()
    assert not prefetch_threads()


def test_closing_starts_no_further_draw() -> None:
    drawn = []

    def draw() -> tuple[None]:
        drawn.append(1)
        return (None,)

    results = prefetch([draw] * 9, CPU, 1)
    next(results)
    results.close()
    assert len(drawn) <= 2
    assert not prefetch_threads()
