"""The sender process: it delivers while a training writes, and survives kills and outages."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.system.errors import UsageError
from diffusion.system.locks import file_lock, is_held
from diffusion.train.checkpoint.run_dir import open_run
from tests.conftest import diffctl
from tests.helpers.mlflow_server import MlflowServer, free_port
from tests.helpers.spools import EXPERIMENT, logged, open_spool, run_of, stored, the_run, write_points
from tests.helpers.toy_project import processes_in
from tests.helpers.training_process import prepare
from tests.helpers.waiting import wait_until
from tracking.experiments import ensure_experiment
from tracking.spool import sender
from tracking.spool.spool_status import DeliveryState
from tracking.store import connect


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that is not started yet, as the tracking store."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # the time to detect a hung server
    running = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    yield running
    running.kill()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_folder_as_store_is_refused_at_start(folder, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    open_spool(folder)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI"):
        sender.start_sender(folder)


def test_fresh_training_starts_no_second_sender(folder):
    with file_lock(folder / sender.LOCK), open_run(folder.parent, folder.name, fresh=True):
        assert is_held(folder / sender.LOCK)


def test_sender_ends_after_its_time_limit(folder, monkeypatch):
    dead = f"http://127.0.0.1:{free_port()}"
    write_points(open_spool(folder), 1, 10)
    read_end, write_end = os.pipe()
    os.close(write_end)
    monkeypatch.setattr(sender, "CLOSING_SECONDS", 0.05)
    monkeypatch.setattr(sender, "EXIT_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "LINGER_SECONDS", 0.1)
    assert not sender.run(folder, dead, read_end)
    os.close(read_end)


@pytest.mark.slow
def test_sync_delivers_a_training_without_server(project, server):
    prepare(project, steps=60, log_every=2, save_every=20, preview_every=60)
    env = {"MLFLOW_TRACKING_URI": server.uri}
    done = diffctl(project, "stage", "train", env=env)
    assert done.returncode == 0, done.stderr
    assert (project / "models/model.safetensors").exists()
    for lingering in processes_in(project):
        lingering.kill()  # the training's own sender, which tries for a minute
    server.start()
    run, key = run_of(project)
    assert diffctl(project, "sync", env=env).returncode == 0
    assert stored(server.uri, key) == logged(run)
    assert the_run(server.uri, key).info.status == "FINISHED"


TRAINER = """
import itertools, sys, time
from pathlib import Path
from diffusion.system.locks import file_lock
from tracking.spool import sender
from tracking.spool.event_log import Spool
folder = Path(sys.argv[1])
with file_lock(folder / "lock"):
    spool = Spool(folder, key="key", name="digits-abcd", experiment="diffctl-digits")
    print(sender.start_sender(folder).pid, flush=True)
    for step in itertools.count(1):
        spool.metrics(step, {"loss": 1 / step})
        time.sleep(0.02)
"""


class Trainer:
    """A process that logs until it is killed; `sender` is the process id of its sender."""

    def __init__(self, folder: Path, uri: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.uri = folder, uri
        command = [sys.executable, "-c", TRAINER, str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.sender = int(self.process.stdout.readline())

    def wait_for_progress(self) -> None:
        wait_for_increase(lambda: DeliveryState.load(self.folder, self.uri).offset)

    def wait_for_failed_try(self) -> None:
        log = self.folder / sender.LOG
        wait_for_increase(lambda: log.read_text().count("MLflow does not answer at"))

    def kill(self) -> None:
        """Kill the training, wait for the end of its sender, and check that every point arrived once."""
        self.process.kill()
        self.process.wait()
        wait_until(lambda: gone(self.sender), 90)
        assert stored(self.uri) == logged(self.folder)


def wait_for_increase(count: Callable[[], int]) -> None:
    before = count()
    wait_until(lambda: count() > before, 90)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


@pytest.mark.slow
def test_killed_sender_loses_and_duplicates_nothing(folder, server):
    server.start()
    trainer = Trainer(folder, server.uri)
    for _ in range(2):
        trainer.wait_for_progress()
        os.kill(trainer.sender, signal.SIGKILL)
        process = sender.start_sender(folder)
        trainer.sender = process.pid
    trainer.process.kill()
    process.stdin.close()
    trainer.kill()


@pytest.mark.long
def test_outages_during_training_lose_and_duplicate_nothing(folder, server):
    """The server hangs while the run is created, is killed later, and hangs again."""
    server.start()
    ensure_experiment(connect(server.uri), EXPERIMENT)
    server.signal(signal.SIGSTOP)
    trainer = Trainer(folder, server.uri)
    trainer.wait_for_failed_try()
    server.signal(signal.SIGCONT)
    trainer.wait_for_progress()
    server.kill()
    trainer.wait_for_failed_try()
    server.start()
    trainer.wait_for_progress()
    server.signal(signal.SIGSTOP)
    trainer.wait_for_failed_try()
    server.signal(signal.SIGCONT)
    trainer.wait_for_progress()
    trainer.kill()
    assert the_run(server.uri).info.status == "KILLED"
