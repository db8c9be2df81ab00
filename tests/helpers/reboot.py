"""A reboot in the midst of a scheduled run."""

from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.conftest import diffctl
from tests.helpers.nightly import Nightly, nightly
from tests.helpers.toy import processes_in
from tests.helpers.waiting import wait_until

# The least that Prefect allows: seconds until the slot of a run that is gone comes free.
LEASE = {"PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}


def kill(processes: Iterable[psutil.Process]) -> None:
    """As a power cut does: nobody is asked."""
    left = list(processes)
    for process in left:
        process.suspend()  # so that none of them sees another one's end
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=30)


def training(work: Nightly) -> bool:
    """Whether a training has saved a state."""
    return any(work.clone.glob("runs/train/*/state-*"))


def reboot_in_training(folder: Path) -> None:
    """Kill servers, worker and run while it trains, start them again: the next run goes on and completes."""
    with nightly(folder, {"interval": 15}, server=LEASE, train={"steps": 200, "save_every": 10}) as work:
        with work.worker():
            wait_until(lambda: training(work), 400)
            kill(_everything(work))
        assert not processes_in(work.clone)
        started = diffctl(work.servers.folder, "up", env=work.servers.env)
        assert started.returncode == 0, started.stderr
        with work.worker():
            wait_until(lambda: "Completed" in work.states(), 500)
        lines = [entry["message"] for entry in work.logs()]
    assert any("train: going on after step" in line for line in lines)
    assert (work.clone / "report/index.html").exists()


def _everything(work: Nightly) -> list[psutil.Process]:
    return [
        process
        for folder in (work.clone, work.elsewhere, work.servers.folder)
        for process in processes_in(folder)
    ]
