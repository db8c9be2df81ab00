"""A scheduled run survives connections to MLflow and Prefect that are refused, hang, break or are slow."""

import asyncio
import dataclasses
import socket
import struct
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import free_port
from tests.helpers.nightly import nightly
from tests.helpers.small import commit
from tests.helpers.spools import logged, run_of, stored, the_run
from tests.helpers.waiting import wait_until
from tracking.registry.registered_models import champion_version
from tracking.spool.event_log import EVENTS
from tracking.spool.sender import LOG
from tracking.spool.spool_status import DeliveryState

pytestmark = pytest.mark.long

STEPS = 1500
# A training that takes its time between steps, and its last steps only when the file `enough` is there.
PATIENT = f"""

def _patiently(self, check=StopRequest.raise_if_set, steps=[0]):
    import time
    from pathlib import Path

    steps[0] += 1
    while not Path("enough").exists():
        time.sleep(0.1)
        if steps[0] < {STEPS - 100}:
            break
    check(self)


StopRequest.raise_if_set = _patiently
"""


def test_a_run_survives_faulty_connections_and_logs_every_point(tmp_path, monkeypatch) -> None:
    train = {"steps": STEPS, "log_every": 5, "save_every": 500, "preview_every": STEPS}
    with (
        nightly(tmp_path, {"interval": 15}, train=train) as work,
        closing(Proxy(int(work.servers.env["DIFFCTL_MLFLOW_PORT"]))) as mlflow,
        closing(Proxy(int(work.servers.env["DIFFCTL_PREFECT_PORT"]))) as prefect,
    ):
        signals = tmp_path / "origin/diffusion/system/signals.py"
        signals.write_text(signals.read_text() + PATIENT)
        commit(tmp_path / "origin", "train patiently")
        uri = f"http://127.0.0.1:{mlflow.port}"
        lines = {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect.port}/api",
        }
        with dataclasses.replace(work, env=work.env | lines).worker():
            wait_until(lambda: list(work.clone.glob("runs/train/*/sent.json")) != [], 400)
            run, _ = run_of(work.clone)
            (at_work,) = [one["id"] for one in work.runs() if one["state_name"] == "Running"]
            for mode in ("refuse", "hang", "reset", "slow"):
                missed, trained = missed_in(run), points_in(run)
                mlflow.become(mode)
                prefect.become(mode)
                # As many steps take longer than a run needs to look at its state and to tell its progress.
                wait_until(lambda before=trained: points_in(run) > before + 10, 120)
                prefect.become("pass")  # a run that is not heard of for long is taken for dead
                if mode != "slow":
                    wait_until(lambda before=missed: missed_in(run) > before, 120)
                mlflow.become("pass")
                sent = DeliveryState.load(run, uri).offset
                wait_until(lambda before=sent: DeliveryState.load(run, uri).offset > before, 120)
            assert work.state_of(at_work) == "Running"
            (work.clone / "enough").touch()
            wait_until(lambda: work.state_of(at_work) != "Running", 500)
            assert work.state_of(at_work) == "Completed"
            wait_until(lambda: set(work.tasks(at_work).values()) == {"Completed"})
        wait_until(lambda: DeliveryState.load(run, uri).complete, 120)
        run, key = run_of(work.clone)
        ours = {name for name, *_ in logged(run)}
        assert {point: count for point, count in stored(uri, key).items() if point[0] in ours} == logged(run)
        assert the_run(uri, key).info.status == "FINISHED"
        assert {"data", "train", "sample", "evaluate", "report"} <= work.tasks(at_work).keys()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert champion_version("diffctl-digits") == 1


def missed_in(run: Path) -> int:
    """The number of log messages that MLflow does not answer."""
    log = run / LOG
    return log.read_text().count("MLflow does not answer at") if log.exists() else 0


def points_in(run: Path) -> int:
    """How many lines the training has written for MLflow."""
    return len((run / EVENTS).read_text().splitlines())


BLOCK = 4096  # bytes forwarded at once
DELAY = 0.02  # seconds before each block in slow mode
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close that is a reset


class Proxy:
    """Listen at `port` of 127.0.0.1; each mode applies to existing and new connections.

    `refuse` closes all and stops listening, `hang` accepts connections silently, `reset` ends each by a
    reset, `slow` lets 200 kB a second through.
    """

    def __init__(self, target: int) -> None:
        self.port, self._target, self._mode = free_port(), target, "pass"
        self._loop = asyncio.new_event_loop()
        self._open, self._lines = asyncio.Event(), set[asyncio.StreamWriter]()
        self._server: asyncio.Server | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.become("pass")

    def become(self, mode: str) -> None:
        """Switch to that mode."""
        asyncio.run_coroutine_threadsafe(self._become(mode), self._loop).result(30)

    def close(self) -> None:
        """End, with all connections."""
        self.become("refuse")
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _become(self, mode: str) -> None:
        self._mode = mode
        self._open.clear() if mode == "hang" else self._open.set()
        if mode == "refuse":
            if self._server is not None:
                self._server.close()
            self._server = None
        elif self._server is None:
            self._server = await asyncio.start_server(self._meet, "127.0.0.1", self.port)
        if mode in ("refuse", "reset"):
            for line in list(self._lines):
                _reset(line)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "reset":
            return _reset(writer)
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        self._lines |= {writer, there}
        try:
            await asyncio.gather(self._pass_on(reader, there), self._pass_on(there_reader, writer))
        finally:
            self._lines -= {writer, there}
        return None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(BLOCK):
                await self._open.wait()
                if self._mode == "slow":
                    await asyncio.sleep(DELAY)
                writer.write(block)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    line = writer.get_extra_info("socket")
    with suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
