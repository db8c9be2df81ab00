"""Real MLflow stores for tests: sqlite files, and a server on 127.0.0.1 to kill, stop and start again."""

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusion.system.processes import group_processes, terminate
from tests.helpers.waiting import wait_until
from tracking.store import connect, server_environment


@functools.cache
def _template() -> Path:
    """An empty database: MLflow takes seconds to make one, so each test process makes it once."""
    folder = Path(tempfile.mkdtemp(prefix="diffctl-tests-"))
    atexit.register(shutil.rmtree, folder)
    connect(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


def empty_database(path: Path) -> str:
    """Make an empty sqlite store and return its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), path)
    return f"sqlite:///{path}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until the process answers at `url`."""

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return bool(urllib.request.urlopen(url, timeout=5))
        return False

    wait_until(answers, 120)


@contextmanager
def running_server(command: Sequence[str], url: str | None, log: Path, **options: Any) -> Iterator[None]:
    """Run a server in its own session during the block, which begins once it answers at `url`, if given.

    Its output goes to `log`; `options` are those of Popen.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        if url is not None:
            wait_for(url, process, log)
        yield
    finally:
        terminate(group_processes(process.pid))
        process.wait(30)


class RestartableServer:
    """A server over `folder`; its port stays the same over restarts."""

    process: subprocess.Popen | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """Signal the server and its workers: SIGSTOP hangs them, SIGCONT continues them."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class MlflowServer(RestartableServer):
    """MLflow's server."""

    def start(self) -> "MlflowServer":
        database = self.folder / "server.db"
        if not database.exists():
            empty_database(database)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.folder / "artifacts")]
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115 (the server's)
        env = os.environ | server_environment(f"sqlite:///{database}")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=env)
        wait_for(f"{self.uri}/health", self.process, self.folder / "server.log")
        return self
