"""A reboot in the midst of a scheduled run, at a moment that is counted in events."""

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

# The least that Prefect allows: seconds until the slot of a run that is gone comes free.
LEASE = {"PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}

STEPS, SAVE_EVERY = 200, 10
UNITS = 12  # of the four cells of the small sweep, in batches of 8 of its 20 images


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
    return states(work.clone) > 0


def states(clone: Path) -> int:
    """How many states the training has saved, by the step of the newest one that is kept."""
    names = [path.name.split(".")[0] for path in (clone / TRAIN_RUNS).glob("*/state-*")]
    return max((int(name.rpartition("-")[2]) // SAVE_EVERY for name in names), default=0)


def units(clone: Path) -> dict[Path, int]:
    """The units of cells that were sampled, each with when it was written."""
    return {path: path.stat().st_mtime_ns for path in (clone / CELL_RUNS).rglob("*.npy")}


def records(clone: Path, table: str = "registered_models") -> int:
    """How many registered models MLflow knows, or versions of them."""
    with (
        suppress(sqlite3.OperationalError),  # there is no store yet, or it is being written
        closing(sqlite3.connect(f"file:{clone / 'mlflow.db'}?mode=ro", uri=True)) as database,
    ):
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    return 0


# What is counted, and up to which of them a reboot may be asked for.
EVENTS: Mapping[str, tuple[Callable[[Path], int], int]] = {
    "states saved": (states, STEPS // SAVE_EVERY // 2),  # the newest ones go as the training ends
    "units sampled": (lambda clone: len(units(clone)), UNITS),
    "files of scores": (lambda clone: int((clone / SCORES).exists()), 1),
    "models registered": (records, 1),
}


@dataclass(frozen=True)
class Moment:
    """When the power goes: as soon as so many of an event are seen."""

    event: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.count} {self.event}"

    def has_come(self, clone: Path) -> bool:
        """Whether it is time."""
        return EVENTS[self.event][0](clone) >= self.count


def drawn(seed: int, number: int) -> Moment:
    """The moment of reboot `number`: each event as often as another one, at any of its counts."""
    rng = random.Random(f"{seed} {number}")
    event = rng.choice(list(EVENTS))
    return Moment(event, rng.randint(1, EVENTS[event][1]))


def reboot(folder: Path, moment: Moment) -> None:
    """Kill servers, worker and run at that moment, start them again: the next run completes.

    A training goes on; of the units that were sampled none is sampled again, and one version is registered.
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
        assert any("train: going on after step" in line for line in lines)
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
