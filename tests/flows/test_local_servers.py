"""Background servers are recorded, found again and stopped alone; a temporary one ends with its run."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from diffusion.system.errors import DiffctlError
from flows.prefect_server.client import is_healthy
from flows.prefect_server.local_servers import (
    FOLDER,
    LocalServer,
    is_mlflow_healthy,
    recorded,
    running,
    start_server,
)
from flows.prefect_server.temporary_server import prefect_server, wait_for_recorder
from tests.helpers.prefect_home import with_database
from tests.helpers.toy_project import processes_in, script, wait_for_file, wait_until_left
from tests.helpers.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
WITH_CHILD = [
    sys.executable,
    "-c",
    f"import subprocess, time; subprocess.Popen({SLEEP}); print('parent', flush=True); time.sleep(60)",
]
HOLD = """
import os, time
from pathlib import Path
from flows.prefect_server.temporary_server import prefect_server
with prefect_server() as url:
    assert os.environ["PREFECT_API_URL"] == url
    Path("url").write_text(url)
    time.sleep(60)
"""


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


@pytest.fixture
def prefect_folder(tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    with_database(tmp_path, prefect_database)
    return tmp_path


@pytest.mark.slow
def test_one_server_per_folder_which_ends_when_its_run_is_killed(prefect_folder: Path) -> None:
    run = script(prefect_folder, HOLD)
    wait_for_file(prefect_folder / "url")
    assert is_healthy((prefect_folder / "url").read_text(), timeout=5)
    with pytest.raises(DiffctlError, match="another `diffctl run`"), prefect_server():
        pass
    run.send_signal(signal.SIGKILL)
    run.wait(10)
    wait_until_left(prefect_folder)


@pytest.mark.slow
def test_a_failed_start_leaves_no_process(prefect_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    (prefect_folder / ".prefect/prefect.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DiffctlError, match="did not start"), prefect_server():
        pass
    assert not processes_in(prefect_folder)


def test_the_server_records_queued_events_before_shutdown() -> None:
    from prefect.server.utilities.messaging.memory import Consumer, MemoryMessage, Topic

    taken: list[bytes] = []

    async def take(message: Any) -> None:
        await asyncio.sleep(0)  # as a database write does
        taken.append(message.data)

    async def server() -> None:
        consumer = Consumer("events")
        reading = asyncio.create_task(consumer.run(take))
        for number in range(50):
            await Topic.by_name("events").publish(MemoryMessage(str(number).encode(), {}))
        await wait_for_recorder()
        assert len(taken) >= 48, "at most two are being written"
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await consumer.cleanup()

    asyncio.run(server())
