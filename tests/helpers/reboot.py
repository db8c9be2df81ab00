"""A reboot during a scheduled run, at a moment counted in events."""

import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffusion.layout import CELL_RUNS, SCORES, TRAIN_RUNS
from tests.conftest import diffctl
from tests.helpers.nightly import Nightly, nightly
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until

# Prefect's minimum: seconds until the slot of a dead run is freed.
LEASE = {"PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}

STEPS, SAVE_EVERY = 200, 10
UNITS = 12  # of the four cells of the small sweep, in batches of 8 of its 20 images


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill all processes at once, as a power cut does."""
    left = list(processes)
    for process in left:
        process.suspend()  # so that none reacts to another one's end
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=30)


def training(work: Nightly) -> bool:
    """Whether a training has saved a state."""
    return states(work.clone) > 0


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


# What is counted, and the largest count for a reboot.
EVENTS: Mapping[str, tuple[Callable[[Path], int], int]] = {
    "states saved": (states, STEPS // SAVE_EVERY // 2),  # the newest ones are removed when the training ends
    "units sampled": (lambda clone: len(units(clone)), UNITS),
    "files of scores": (lambda clone: int((clone / SCORES).exists()), 1),
    "models registered": (records, 1),
}


@dataclass(frozen=True)
class Moment:
    """The moment of the power cut: after so many events of a kind."""

    event: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.count} {self.event}"

    def has_come(self, clone: Path) -> bool:
        """Whether it is time."""
        return EVENTS[self.event][0](clone) >= self.count


def drawn(seed: int, number: int) -> Moment:
    """Draw the moment of reboot `number`: kinds equally often, at any count."""
    rng = random.Random(f"{seed} {number}")
    event = rng.choice(list(EVENTS))
    return Moment(event, rng.randint(1, EVENTS[event][1]))


def reboot(folder: Path, moment: Moment) -> None:
    """Kill servers, worker and run at that moment, restart them, and assert that the next run completes.

    A training resumes, no unit is sampled twice, and one version is registered.
    """
    train = {"steps": STEPS, "save_every": SAVE_EVERY}
    with nightly(folder, {"interval": 15}, server=LEASE, train=train) as work:
        with work.worker():
            wait_until(lambda: moment.has_come(work.clone), 400)
            kill(_everything(work))
        assert not processes_in(work.clone)
        sampled = units(work.clone)
        started = diffctl(work.servers.folder, "up", env=work.servers.env)
        assert started.returncode == 0, started.stderr
        with work.worker():
            wait_until(lambda: "Completed" in work.states(), 500)
        lines = [entry["message"] for entry in work.logs()]
    if moment.event == "states saved":
        assert any("train: resuming after step" in line for line in lines)
    assert sampled.items() <= units(work.clone).items(), "what was sampled is not sampled again"
    assert len(units(work.clone)) == UNITS
    assert records(work.clone, "model_versions") == 1
    assert (work.clone / "report/index.html").exists()


def _everything(work: Nightly) -> list[psutil.Process]:
    return [
        process
        for folder in (work.clone, work.elsewhere, work.servers.folder)
        for process in processes_in(folder)
    ]
