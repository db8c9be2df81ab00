"""The temporary Prefect server: it answers, and ends with its run in every case."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from diffusion.system.errors import DiffctlError
from flows.prefect_server.client import is_healthy
from flows.prefect_server.temporary_server import prefect_server, wait_for_recorder
from tests.helpers.prefect_home import with_database
from tests.helpers.toy_project import processes_in, script, wait_for_file, wait_until_left

HOLD = """
import os, time
from pathlib import Path
from flows.prefect_server.temporary_server import prefect_server
with prefect_server() as url:
    assert os.environ["PREFECT_API_URL"] == url
    Path("url").write_text(url)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    with_database(tmp_path, prefect_database)
    return tmp_path


@pytest.mark.slow
def test_one_server_per_folder_which_ends_when_its_run_is_killed(folder: Path) -> None:
    run = script(folder, HOLD)
    wait_for_file(folder / "url")
    assert is_healthy((folder / "url").read_text(), timeout=5)
    with pytest.raises(DiffctlError, match="another `diffctl run`"), prefect_server():
        pass
    run.send_signal(signal.SIGKILL)
    run.wait(10)
    wait_until_left(folder)


@pytest.mark.slow
def test_a_failed_start_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    (folder / ".prefect/prefect.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DiffctlError, match="did not start"), prefect_server():
        pass
    assert not processes_in(folder)


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
