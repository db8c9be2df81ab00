"""Reboots in a scheduled run, and servers that restart under one: later runs complete."""

import json
import signal
from pathlib import Path

import pytest

from tests.conftest import diffctl
from tests.helpers.nightly import LEASE, Moment, Nightly, kill, nightly, reboot, training
from tests.helpers.servers import post
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until

LONG = {"steps": 100_000, "save_every": 10}
# One moment of each kind of event. Each takes minutes, mostly spent waiting.
MOMENTS = [
    Moment("states saved"),
    Moment("states saved", 7),
    Moment("units sampled", 5),
    Moment("files of scores"),
    Moment("models registered"),
]


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_after_a_reboot_the_next_run_resumes(moment: Moment, tmp_path: Path) -> None:
    reboot(tmp_path, moment)


def leases(work: Nightly) -> dict[str, str]:
    """The expiry of each lease."""
    folder = work.servers.folder / ".prefect/concurrency_leases"
    files = [path for path in folder.glob("*.json") if path.name != "expirations.json"]
    return {path.stem: json.loads(path.read_text())["expiration"] for path in files}


@pytest.mark.long
def test_a_run_survives_a_server_restart_and_can_be_cancelled(
    tmp_path: Path,
) -> None:
    with nightly(tmp_path, None, server=LEASE, train=LONG) as work, work.worker():
        work.start("pipeline/retrain")
        wait_until(lambda: training(work), 400)
        kill(processes_in(work.servers.folder))
        assert diffctl(work.servers.folder, "up", env=work.servers.env).returncode == 0
        before = leases(work)
        assert len(before) == 1
        wait_until(lambda: leases(work).keys() == before.keys() and leases(work) != before, 300)
        (run,) = work.runs()
        assert run["state_name"] == "Running"
        post(
            f"{work.url}/flow_runs/{run['id']}/set_state",
            {"state": {"type": "CANCELLING", "name": "Cancelling"}},
        )
        wait_until(lambda: work.state_of(run["id"]) == "Cancelled", 90)
        assert not [process for process in processes_in(work.clone) if "train" in process.cmdline()]


@pytest.mark.long
def test_runs_reap_frees_a_pending_run(tmp_path: Path) -> None:
    with nightly(tmp_path, None) as work:
        work.start("pipeline/retrain")
        (run,) = work.runs()
        pending = {"state": {"type": "PENDING", "name": "Pending"}}
        post(f"{work.url}/flow_runs/{run['id']}/set_state", pending)
        patient = diffctl(work.clone, "runs", "reap", env=work.env)
        assert patient.stdout == "no dead training is left unmarked\n"
        freed = diffctl(work.clone, "runs", "reap", "--pending", "0", env=work.env)
        assert freed.returncode == 0, freed.stderr
        assert "pending for" in freed.stdout
        assert work.states() == ["Crashed"]


@pytest.mark.long
def test_a_run_is_skipped_while_its_clone_stays_busy(tmp_path: Path) -> None:
    with nightly(tmp_path, None, wait=1, train=LONG) as work, work.worker():
        work.start("pipeline/retrain")
        wait_until(lambda: training(work), 400)
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
