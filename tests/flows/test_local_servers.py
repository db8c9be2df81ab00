"""Background servers: recorded, found again, and stopped without touching other processes."""

import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.prefect_server.local_servers import (
    FOLDER,
    LocalServer,
    is_mlflow_healthy,
    recorded,
    running,
    start_server,
)
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


def test_a_port_without_a_web_server_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        healthy = thread.submit(is_mlflow_healthy, f"http://127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_10.0\r\n")
            assert healthy.result() is False


@pytest.mark.slow
def test_stop_also_ends_the_children_of_a_killed_server() -> None:
    made = start_server("one", WITH_CHILD, {}, 4200)
    wait_until(lambda: {"parent", "on"} <= set((FOLDER / "one.log").read_text().split()))
    _, child = sorted(made.processes(), key=lambda process: process.pid != made.pid)
    os.kill(made.pid, 9)
    os.waitpid(made.pid, 0)
    made.stop()
    assert not child.is_running()
