"""The project's servers; a clone with its deployments on them, and a worker."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from flows import clone
from tests.conftest import diffctl, environment
from tests.helpers.mlflow_server import free_port, running_server
from tests.helpers.small import commit, git, own_code, small_project


@dataclass(frozen=True)
class Servers:
    """What `diffctl up` started in `folder`: the addresses, and the environment that chose the ports."""

    folder: Path
    env: dict[str, str]

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.env['DIFFCTL_MLFLOW_PORT']}"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.env['DIFFCTL_PREFECT_PORT']}/api"


@contextmanager
def servers_up(folder: Path, env: dict[str, str] | None = None) -> Iterator[Servers]:
    """Start both servers in the folder; they are stopped with the block."""
    ports = {"DIFFCTL_MLFLOW_PORT": str(free_port()), "DIFFCTL_PREFECT_PORT": str(free_port())}
    made = Servers(folder, {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": "", **(env or {}), **ports})
    try:
        started = diffctl(folder, "up", env=made.env)
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        stopped = diffctl(folder, "down", env=made.env)
        assert stopped.returncode == 0, stopped.stderr


def post(url: str, body: dict[str, Any]) -> Any:
    """POST to Prefect's API; return the answer. Retry a 503 (locked database), as its client does."""
    retry = Retry(5, backoff_factor=0.5, status_forcelist=[503], allowed_methods=None)
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        reply = session.post(url, json=body, timeout=30)
        reply.raise_for_status()
        return reply.json()


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

    def set_state(self, run_id: str, kind: str, message: str | None = None, force: bool = False) -> None:
        """Set the state of a flow run, named as its type."""
        state = {"type": kind, "name": kind.title(), "message": message}
        post(f"{self.url}/flow_runs/{run_id}/set_state", {"state": state, "force": force})

    def logs(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Return the log entries of a flow run, by default of all."""
        chosen = {"logs": {"flow_run_id": {"any_": [run_id]}}} if run_id else {}
        return post(f"{self.url}/logs/filter", {**chosen, "limit": 200})

    def tasks(self, run_id: str) -> dict[str, str]:
        """Return the states of a flow run's tasks by name."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}}
        return {task["name"]: task["state_name"] for task in post(f"{self.url}/task_runs/filter", body)}

    def worker(self) -> Any:
        """Run a worker during the block."""
        line = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "diffctl"]
        log, env = self.elsewhere / "worker.log", environment(self.env)
        return running_server(line, None, log, cwd=self.elsewhere, env=env)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment now; return its id."""
        (found,) = [
            one
            for one in post(f"{self.url}/deployments/filter", {})
            if one["name"] == deployment.rpartition("/")[2]
        ]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}}
        return str(post(f"{self.url}/deployments/{found['id']}/create_flow_run", body)["id"])


@contextmanager
def nightly(
    folder: Path, schedule: dict[str, Any] | None, *, wait: int = 600, server: Any = None, **changes: Any
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
