"""A clone with the project's deployments on separate servers, and a worker."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from diffusion.layout import CELL_RUNS, SCORES, TRAIN_RUNS
from flows import clone
from tests.conftest import diffctl, environment
from tests.helpers.servers import Servers, post, servers_up
from tests.helpers.small import commit, git, own_code, small_project
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until


@contextmanager
def process(*arguments: str, cwd: Path, env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run Prefect's command line in its own session with output to a file; end it with its children."""
    log = cwd / f"{arguments[0]}.log"
    with open(log, "a") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=cwd,
            env=environment(env),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield running
    except BaseException:
        print(log.read_text())
        raise
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)


@dataclass
class Nightly:
    """The clone, the worker's folder, the servers' folder and the worker's environment."""

    clone: Path
    elsewhere: Path
    servers: Servers
    env: dict[str, str]

    @property
    def url(self) -> str:
        return self.servers.prefect

    def runs(self, flow: str = "pipeline") -> list[dict[str, Any]]:
        """Return the flow's runs in the order of their start."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        return post(f"{self.url}/flow_runs/filter", body)

    def states(self, flow: str = "pipeline") -> list[str]:
        return [run["state_name"] for run in self.runs(flow)]

    def state_of(self, run_id: str) -> str:
        return next(run["state_name"] for run in self.runs() if run["id"] == run_id)

    def logs(self) -> list[dict[str, Any]]:
        return post(f"{self.url}/logs/filter", {"limit": 200})

    def worker(self) -> Any:
        """Run a worker during the block."""
        return process("worker", "start", "--pool", "diffctl", cwd=self.elsewhere, env=self.env)

    def start(self, deployment: str, **parameters: Any) -> None:
        """Start a run of a deployment now."""
        command = [sys.executable, "-m", "prefect", "deployment", "run", deployment]
        command += [part for item in parameters.items() for part in ("--param", f"{item[0]}={item[1]}")]
        subprocess.run(command, cwd=self.clone, env=environment(self.env), check=True, capture_output=True)


@contextmanager
def nightly(
    folder: Path,
    schedule: dict[str, Any] | None,
    wait: int = 600,
    server: dict[str, str] | None = None,
    **changes: dict[str, Any],
) -> Iterator[Nightly]:
    """Servers, deployments and clone, with another schedule for `retrain` and `changes` in params.yaml.

    `wait` is how long a run waits for the clone; `server` is in the servers' environment.
    """
    origin = small_project(folder / "origin", **changes)
    values = yaml.safe_load((origin / "prefect.yaml").read_text())
    values["pull"][0]["flows.clone.update_clone"]["wait"] = wait
    values["deployments"][0]["schedules"] = [schedule] if schedule else []
    (origin / "prefect.yaml").write_text(yaml.safe_dump(values))
    commit(origin, "another schedule")
    git(folder, "clone", "--quiet", str(origin), "nightly")
    here, elsewhere, servers_folder = folder / "nightly", folder / "elsewhere", folder / "servers"
    for made in (elsewhere, servers_folder):
        made.mkdir()
    settings = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", **(server or {})}
    with servers_up(servers_folder, settings) as servers:
        env = {
            **own_code(here),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": servers.prefect,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            clone.VARIABLE: str(here),
        }
        deployed = diffctl(here, "deploy", env=env)
        assert deployed.returncode == 0, deployed.stderr
        assert deployed.stderr == ""
        yield Nightly(here, elsewhere, servers, env)


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
