"""Processes by id and start time, and groups that are ended."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion.system.processes import group_processes, start_time, terminate
from tests.conftest import start_python
from tests.helpers.waiting import wait_until

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(60)
"""


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
