"""Background servers: recorded, found again, and stopped without touching other processes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.prefect_server.local_servers import FOLDER, LocalServer, recorded, running, start_server
from tests.helpers.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
WITH_CHILD = [
    sys.executable,
    "-c",
    f"import subprocess, time; subprocess.Popen({SLEEP}); print('parent', flush=True); time.sleep(60)",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if (left := recorded("one")) is not None:
        left.stop()


def test_a_started_server_is_recorded_and_stopped_but_no_process_with_a_reused_pid() -> None:
    made = start_server("one", SLEEP, {}, 4200)
    assert recorded("one") == running("one") == made
    assert os.getsid(made.pid) == made.pid
    reused = LocalServer(name="two", pid=made.pid, start="another moment", port=4200)
    assert not reused.alive
    reused.stop()
    assert made.alive
    made.stop()
    assert (recorded("one"), running("one"), made.alive) == (None, None, False)


@pytest.mark.slow
def test_stop_also_ends_the_children_of_a_killed_server() -> None:
    made = start_server("one", WITH_CHILD, {}, 4200)
    wait_until(lambda: {"parent", "on"} <= set((FOLDER / "one.log").read_text().split()))
    _, child = sorted(made.processes(), key=lambda process: process.pid != made.pid)
    os.kill(made.pid, 9)
    os.waitpid(made.pid, 0)
    made.stop()
    assert not child.is_running()
