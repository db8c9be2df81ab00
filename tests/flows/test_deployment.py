"""The schedule: a real Prefect server and worker, prefect.yaml's deployment, a run that comes by itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion.system.errors import UsageError
from flows import clone
from flows.server import answers
from tests.closure import ROOT
from tests.conftest import environment
from tests.helpers.small import commit, git, own_code, small_project
from tests.helpers.toy import processes_in
from tests.helpers.waiting import wait_until


def test_a_clone_is_brought_to_its_newest_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    origin = tmp_path / "origin"
    (origin / "flows").mkdir(parents=True)
    (origin / "flows/__init__.py").touch()
    (origin / "dvc.yaml").write_text("stages: {}\n")
    (origin / "dvc.lock").write_text("as committed\n")
    git(origin, "init", "--quiet")
    commit(origin, "begin")
    git(tmp_path, "clone", "--quiet", str(origin), "nightly")
    nightly = tmp_path / "nightly"
    (nightly / "dvc.lock").write_text("what last night's run left\n")
    (origin / "params.yaml").write_text("newer\n")
    commit(origin, "go on")

    monkeypatch.setenv(clone.VARIABLE, str(nightly))
    monkeypatch.setattr(clone.flows, "__file__", str(nightly / "flows/__init__.py"))
    assert clone.update_clone() == {"directory": str(nightly)}
    assert Path.cwd() == nightly
    assert (nightly / "dvc.lock").read_text() == "as committed\n"
    assert (nightly / "params.yaml").read_text() == "newer\n"


def test_the_clone_must_be_named_and_run_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(clone.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="must name a clone"):
        clone.update_clone()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv(clone.VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match="start it from the clone's own environment"):
        clone.update_clone()


def test_nightly_runs_are_one_at_a_time() -> None:
    (retrain,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert retrain["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert len(retrain["schedules"]) == 1


def api(url: str, path: str, body: dict[str, Any]) -> Any:
    """POST to Prefect's API; the answer."""
    request = urllib.request.Request(
        f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


@contextmanager
def process(*arguments: str, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """Prefect's command line in a session of its own, its output in a file; ended with all it started."""
    log = cwd / f"{arguments[0]}.log"
    with open(log, "w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=cwd,
            env=environment(env),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield
    except BaseException:
        print(log.read_text())
        raise
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)


@dataclass
class Nightly:
    """A clone with the deployment on a Prefect server of its own, and a worker for it elsewhere."""

    clone: Path
    elsewhere: Path
    url: str

    def runs(self) -> list[dict[str, Any]]:
        """The pipeline's flow runs, in the order in which they began."""
        body = {"flows": {"name": {"any_": ["pipeline"]}}, "sort": "START_TIME_ASC"}
        return api(self.url, "/flow_runs/filter", body)

    def states(self) -> list[str]:
        return [run["state_name"] for run in self.runs()]

    def state_of(self, run_id: str) -> str:
        return next(run["state_name"] for run in self.runs() if run["id"] == run_id)


@contextmanager
def nightly(folder: Path, schedule: dict[str, Any], **changes: dict[str, Any]) -> Iterator[Nightly]:
    """Start all of it, with another schedule in the project's prefect.yaml and `changes` in params.yaml."""
    origin = small_project(folder / "origin", **changes)
    values = yaml.safe_load((origin / "prefect.yaml").read_text())
    values["deployments"][0]["schedules"] = [schedule]
    (origin / "prefect.yaml").write_text(yaml.safe_dump(values))
    commit(origin, "another schedule")
    git(folder, "clone", "--quiet", str(origin), "nightly")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Nightly(folder / "nightly", elsewhere, f"http://127.0.0.1:{port}/api")
    env = {
        **own_code(made.clone),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": made.url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        clone.VARIABLE: str(made.clone),
    }

    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        subprocess.run(command, cwd=made.clone, env=environment(env), check=True, capture_output=True)

    with process("server", "start", "--port", str(port), "--no-ui", cwd=elsewhere, env=env):
        wait_until(lambda: answers(made.url, timeout=1), 120)
        prefect("work-pool", "create", "diffctl", "--type", "process")
        prefect("deploy", "--all")
        with process("worker", "start", "--pool", "diffctl", cwd=elsewhere, env=env):
            yield made


@pytest.mark.slow
def test_a_scheduled_run_comes_by_itself_and_completes(tmp_path: Path) -> None:
    with nightly(tmp_path, {"interval": 10}) as work:
        wait_until(lambda: {"Completed", "Failed", "Crashed"} & set(work.states()) != set(), 400)
        states = work.states()
    assert {"Completed", "Cancelled"} <= set(states), (
        "one ended, and one that was due meanwhile did not begin"
    )
    assert not {"Failed", "Crashed"} & set(states)
    assert states.count("Running") <= 1
    assert (work.clone / "report/index.html").exists()
    assert not (work.elsewhere / "report").exists()


@pytest.mark.slow
def test_a_run_that_is_cancelled_saves_and_leaves_no_process(tmp_path: Path) -> None:
    with nightly(tmp_path, {"interval": 10}, train={"steps": 100_000, "save_every": 10}) as work:
        wait_until(lambda: any(work.clone.glob("runs/train/*/state-*")), 400)
        (running,) = [run for run in work.runs() if run["state_name"] == "Running"]
        state = {"type": "CANCELLING", "name": "Cancelling"}
        api(work.url, f"/flow_runs/{running['id']}/set_state", {"state": state})
        wait_until(lambda: work.state_of(running["id"]) == "Cancelled", 90)
        training = [run for run in processes_in(work.clone) if "train" in run.cmdline()]
        assert not training
