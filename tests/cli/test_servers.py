"""`diffctl up`, `status`, `down` and `ui`: real servers, and what prevents their start."""

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from cli.actions.servers import local_servers
from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import REFUSED
from diffusion.system.locks import file_lock
from flows.prefect_server.client import HOME
from tests.conftest import diffctl, start_diffctl
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.mlflow_server import empty_database, free_port
from tests.helpers.nightly import servers_up
from tests.helpers.prefect_home import with_database
from tests.helpers.spools import open_spool, write_points
from tests.helpers.toy_project import be, processes_in, toy_project, wait_until_left
from tests.tracking.conftest import make_model  # noqa: F401 (a fixture)
from tracking.connectivity import MlflowDenied
from tracking.experiments import ensure_experiment
from tracking.registry.registered_models import register
from tracking.store import connect


def test_up_refuses_ports_in_use(project: Path, invoke: Invoke) -> None:
    free = str(free_port())
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        refused = invoke("up", "--mlflow-port", free, "--prefect-port", taken)
        assert_refused(refused, taken, "--prefect-port", "DIFFCTL_PREFECT_PORT", code=1)
        assert_refused(invoke("ui", "--port", taken), taken, "--port", code=1)
    assert_refused(invoke("up", "--mlflow-port", free, "--prefect-port", free), "port", code=1)
    assert not processes_in(project)


def test_status_and_down_without_servers(project: Path, invoke: Invoke) -> None:
    assert "`diffctl up`" in invoke("status").out
    found = json.loads(invoke("status", "--json").out)
    assert found.pop("disk")["free"] > 0
    assert found.pop("champion") is found.pop("prefect") is None
    assert set(found) == {"servers", "runs", "deployments", "workers", "undelivered", "problems"}
    assert not any(found.values())
    assert invoke("down").code == 0


@pytest.mark.parametrize("command", ["status", "deploy", "emit data-changed", "runs reap", "run"])
def test_an_invalid_address_of_prefect_is_one_sentence(project, invoke, monkeypatch, command) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://[::1/api")
    words = "PREFECT_API_URL is not the address of a server", "http://HOST:PORT/api"
    assert_refused(invoke(*command.split()), *words)


def test_status_check_reports_disk_metrics_deployments_and_workers(project, invoke, monkeypatch) -> None:
    spool = open_spool(project / TRAIN_RUNS / "f1")
    write_points(spool, 1, 3)
    spool.close("FINISHED")
    run = {"time": "2026-01-02 03:04", "flow_run": "id"}
    failed = {"deployment": "retrain", "state": "Crashed", "reason": "no heartbeat", "failed": True, **run}
    good = {"deployment": "sweep", "state": "Completed", "reason": "", "failed": False, **run}
    failed, good = {**failed, "pool": "diffctl"}, {**good, "pool": "gpu"}
    workers = [{"pool": "diffctl", "worker": "night", "time": "2026-01-02 07:08", "online": False}]
    workers.append({**workers[0], "pool": "gpu", "online": True})
    status = {"runs": [], "deployments": [failed, good], "workers": workers}
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(local_servers, "prefect_status", lambda url: status)
    monkeypatch.setattr(local_servers, "MIN_FREE", float("inf"))
    found = invoke("status", "--check")
    assert found.code == 1
    assert "worker night of pool diffctl is offline, last poll 2026-01-02 07:08 UTC" in found.out
    problems = [line for line in found.out.splitlines() if line.startswith("problem: ")]
    assert problems[0] == "problem: the last run of retrain is Crashed (no heartbeat)"
    assert problems[1] == "problem: no worker polls for scheduled runs of the work pool diffctl"
    assert problems[2].endswith(" are free on the disk of this folder")
    assert problems[3] == "problem: trainings with undelivered metrics: 1"
    assert invoke("status").code == 0


def test_status_check_reports_that_mlflow_denies_access(project, invoke, monkeypatch) -> None:
    monkeypatch.setattr(
        local_servers, "read_champion_history", Mock(side_effect=MlflowDenied("denied: set it"))
    )
    monkeypatch.setattr(local_servers, "MIN_FREE", 0)
    found = invoke("status", "--check")
    assert (found.code, found.out.splitlines()[-1]) == (1, "problem: denied: set it")
    assert MlflowDenied.exit_code == REFUSED


@pytest.mark.slow
def test_servers_named_by_the_environment_are_used(project, invoke, monkeypatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    mlflow, prefect = invoke("up").out.splitlines()
    assert mlflow.startswith("MLflow: http://127.0.0.1:9 (set by MLFLOW_TRACKING_URI, ")
    assert prefect.startswith("Prefect: http://127.0.0.1:9/api (set by PREFECT_API_URL, ")
    assert invoke("ui").out == "the runs are at http://127.0.0.1:9\n"
    status = diffctl(project, "status")  # Prefect reads its variable once a process
    assert (status.returncode, status.stderr.count("\n")) == (75, 1)


@pytest.mark.slow
def test_up_waits_for_no_run_with_a_temporary_server(project: Path) -> None:
    env = {f"DIFFCTL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW")}
    env |= {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": ""}
    with file_lock(project / HOME / "lock", timeout=0):
        refused = diffctl(project, "up", env=env)
    assert refused.returncode == 1
    assert "another `diffctl run`" in refused.stderr
    assert not processes_in(project), "MLflow had started and is stopped"


@pytest.mark.long
def test_servers_run_until_down_and_serve_a_run(tmp_path: Path, prefect_database: Path) -> None:
    with_database(tmp_path, prefect_database)
    toy = toy_project(tmp_path)
    be(toy, "train", "Path('url').write_text(os.environ['PREFECT_API_URL'])\nfail(UsageError('no'))")
    with servers_up(toy) as servers:
        status = json.loads(diffctl(toy, "status", "--json", env=servers.env).stdout)
        assert [row["state"] for row in status["servers"]] == ["up", "up"]
        assert all(row["version"] == row["installed"] for row in status["servers"])
        for row in status["servers"]:
            leader = psutil.Process(row["process"])
            assert os.getsid(leader.pid) == leader.pid, "they outlive the terminal"
        environ = psutil.Process(status["servers"][1]["process"]).environ()
        assert environ["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")

        again = diffctl(toy, "up", env=servers.env)
        assert (again.returncode, "starting" in again.stdout) == (0, False)
        run = diffctl(toy, "run", env=servers.env)
        assert run.returncode == 2, run.stderr
        assert (toy / "url").read_text() == servers.prefect
        assert "Failed" not in diffctl(toy, "status", env=servers.env).stdout, "a finished run is not queued"

        by_server, by_file = connect(servers.mlflow), connect(f"sqlite:///{toy / 'mlflow.db'}")
        run_id = by_server.create_run(ensure_experiment(by_server, "one-store")).info.run_id
        by_server.log_dict(run_id, {"by": "server"}, "by-server.json")
        by_file.log_dict(run_id, {"by": "file"}, "by-file.json")
        for client, name in ((by_server, "by-file"), (by_file, "by-server")):
            path = client.download_artifacts(run_id, f"{name}.json", str(tmp_path))
            assert json.loads(Path(path).read_text()) == {"by": name.removeprefix("by-")}

        stopped = psutil.Process(status["servers"][1]["process"])
        stopped.send_signal(signal.SIGSTOP)
        hung = diffctl(toy, "run", env=servers.env)
        stopped.send_signal(signal.SIGCONT)
        assert hung.returncode == 75
        assert "Prefect" in hung.stderr
    assert not processes_in(toy)


@pytest.mark.slow
def test_ui_serves_until_ctrl_c(project: Path) -> None:
    port = free_port()
    ui = start_diffctl(project, "ui", "--port", str(port))
    assert ui.stdout is not None
    assert ui.stdout.readline() == f"starting MLflow on 127.0.0.1:{port}\n"
    assert ui.stdout.readline() == f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
        assert b"MLflow" in page.read()
    ui.send_signal(signal.SIGINT)
    output, errors = ui.communicate(timeout=30)
    assert (ui.returncode, output) == (0, "")
    assert "Traceback" not in errors
    wait_until_left(project)


@pytest.mark.slow
def test_status_mentions_models_that_were_kept_out(project, make_model, invoke) -> None:  # noqa: F811
    empty_database(project / "mlflow.db")
    make_model(0)
    register()
    for seed in (1, 2, 3):
        make_model(seed, {(5, 0.0): 0.9})
        register()
    status = invoke("status", "--check")
    assert status.code == 1
    assert "champion: diffctl-digits version 1 since " in status.out
    assert "models kept out after version 1: 3" in status.out
    assert "problem: the last 3 models were kept out" in status.out
