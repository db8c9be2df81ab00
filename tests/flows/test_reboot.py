"""Reboots in a scheduled run, and servers that restart under one: later runs complete."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from diffusion.layout import CELL_RUNS, SCORES, TRAIN_RUNS
from tests.conftest import diffctl
from tests.helpers.nightly import Nightly, nightly
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long  # each takes minutes, mostly spent waiting
LONG = {"steps": 100_000, "save_every": 10}
STEPS, SAVE_EVERY = 200, 10
UNITS = 12  # of the four cells of the small sweep, in batches of 8 of its 20 images
# Prefect's minimum: seconds until the slot of a dead run is freed.
LEASE = {"PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill all processes at once, as a power cut does."""
    left = list(processes)
    for process in left:
        process.suspend()  # so that none reacts to another one's end
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=30)


def states(clone: Path) -> int:
    """Return the number of saved states, from the step of the newest one."""
    names = [path.name.split(".")[0] for path in (clone / TRAIN_RUNS).glob("*/state-*")]
    return max((int(name.rpartition("-")[2]) // SAVE_EVERY for name in names), default=0)


def units(clone: Path) -> dict[Path, int]:
    """Return the sampled units of cells with their modification times."""
    return {path: path.stat().st_mtime_ns for path in (clone / CELL_RUNS).rglob("*.npy")}


def records(clone: Path, table: str = "registered_models") -> int:
    """Return the number of registered models, or of their versions."""
    with (
        suppress(sqlite3.OperationalError),  # no store yet, or a concurrent write
        closing(sqlite3.connect(f"file:{clone / 'mlflow.db'}?mode=ro", uri=True)) as database,
    ):
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    return 0


@pytest.mark.parametrize(
    ("happened", "count"),
    [
        (states, 7),
        (lambda clone: len(units(clone)), 5),
        (lambda clone: (clone / SCORES).exists(), 1),
        (records, 1),
    ],
    ids=["seven states", "five units", "scores", "registration"],
)
def test_after_a_reboot_a_run_resumes(happened: Callable[[Path], int], count: int, tmp_path: Path) -> None:
    """Servers, worker and run are killed. No unit is sampled twice, and one version is registered."""
    train = {"steps": STEPS, "save_every": SAVE_EVERY}
    with nightly(tmp_path, {"interval": 15}, server=LEASE, train=train) as work:
        with work.worker():
            wait_until(lambda: happened(work.clone) >= count, 400)
            folders = (work.clone, work.elsewhere, work.servers.folder)
            kill(process for folder in folders for process in processes_in(folder))
        assert not processes_in(work.clone)
        sampled = units(work.clone)
        started = diffctl(work.servers.folder, "up", env=work.servers.env)
        assert started.returncode == 0, started.stderr
        with work.worker():
            wait_until(lambda: "Completed" in work.states(), 500)
        lines = [entry["message"] for entry in work.logs()]
    if happened is states:
        assert any("train: resuming after step" in line for line in lines)
    assert sampled.items() <= units(work.clone).items(), "what was sampled is not sampled again"
    assert len(units(work.clone)) == UNITS
    assert records(work.clone, "model_versions") == 1
    assert (work.clone / "report/index.html").exists()


def leases(work: Nightly) -> dict[str, str]:
    """The expiry of each lease."""
    folder = work.servers.folder / ".prefect/concurrency_leases"
    files = [path for path in folder.glob("*.json") if path.name != "expirations.json"]
    return {path.stem: json.loads(path.read_text())["expiration"] for path in files}


def test_a_run_survives_a_server_restart_and_can_be_cancelled(tmp_path: Path) -> None:
    with nightly(tmp_path, None, server=LEASE, train=LONG) as work, work.worker():
        work.start("pipeline/retrain")
        wait_until(lambda: states(work.clone) > 0, 400)
        kill(processes_in(work.servers.folder))
        assert diffctl(work.servers.folder, "up", env=work.servers.env).returncode == 0
        before = leases(work)
        assert len(before) == 1
        wait_until(lambda: leases(work).keys() == before.keys() and leases(work) != before, 300)
        (run,) = work.runs()
        assert run["state_name"] == "Running"
        work.set_state(run["id"], "CANCELLING")
        wait_until(lambda: work.state_of(run["id"]) == "Cancelled", 90)


def test_a_run_is_skipped_while_its_clone_stays_busy(tmp_path: Path) -> None:
    with nightly(tmp_path, None, wait=1, train=LONG) as work, work.worker():
        work.start("pipeline/retrain")
        wait_until(lambda: states(work.clone) > 0, 400)
        (training_process,) = [
            process for process in processes_in(work.clone) if process.cmdline()[-2:] == ["stage", "train"]
        ]
        kill([one for one in processes_in(work.clone) if one not in (training_process,)])
        assert training_process.is_running(), "the stage outlives its run"
        work.start("sweep-champion/sweep")
        wait_until(lambda: "Skipped" in work.states("sweep-champion"), 120)
        (skipped,) = [run for run in work.runs("sweep-champion") if run["state_name"] == "Skipped"]
        assert "a stage that outlived it, is running in" in skipped["state"]["message"]
        assert training_process.is_running()
        training_process.send_signal(signal.SIGINT)
        training_process.wait(60)
