"""Processes known by id and start, and groups that are ended."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from diffusion.system.processes import group_processes, start_time, terminate
from tests.helpers.waiting import wait_until

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stubborn() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_has_one_start_and_another_one_has_another(stubborn: "subprocess.Popen[str]") -> None:
    assert start_time(stubborn.pid) == start_time(stubborn.pid) != start_time(os.getppid())


def test_who_is_gone_has_no_start_reaped_or_not(stubborn: "subprocess.Popen[str]") -> None:
    stubborn.kill()
    wait_until(lambda: start_time(stubborn.pid) is None)  # a zombie
    stubborn.wait()
    assert start_time(stubborn.pid) is None


def test_a_group_is_ended_whoever_does_not_hear(stubborn: "subprocess.Popen[str]") -> None:
    (member,) = group_processes(stubborn.pid)
    assert member.pid == stubborn.pid
    terminate([member], grace=0.1)
    assert group_processes(stubborn.pid) == []
