"""`diffctl up`, `status`, `down`: real servers in the background, and what stands in their way."""

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from diffusion.system.locks import file_lock
from flows.home import HOME
from tests.conftest import diffctl
from tests.helpers.mlflow_server import free_port
from tests.helpers.prefect_home import with_database
from tests.helpers.servers import servers_up
from tests.helpers.toy import be, processes_in, toy_project
from tracking.store import connect, ensure_experiment

NOWHERE = {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": ""}


def test_a_port_that_is_taken_is_told_before_anything_starts(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {**NOWHERE, "DIFFCTL_PREFECT_PORT": port, "DIFFCTL_MLFLOW_PORT": str(free_port())}
        refused = diffctl(project, "up", env=env)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"diffctl: port {port} of this machine is taken: give Prefect another one with --prefect-port, "
        "or set DIFFCTL_PREFECT_PORT\n"
    )
    assert not processes_in(project)


def test_two_servers_want_two_ports(project: Path) -> None:
    port = str(free_port())
    refused = diffctl(project, "up", "--mlflow-port", port, "--prefect-port", port, env=NOWHERE)
    assert refused.returncode == 1
    assert "need a port each" in refused.stderr


def test_without_servers_status_and_down_say_so(project: Path) -> None:
    told = diffctl(project, "status", env=NOWHERE)
    assert told.stdout == "none of this folder's servers is running: `diffctl up` starts them\n"
    assert json.loads(diffctl(project, "status", "--json", env=NOWHERE).stdout) == {
        "servers": [],
        "prefect": None,
        "runs": [],
    }
    assert diffctl(project, "down", env=NOWHERE).stdout == "none of this folder's servers is running\n"


def test_servers_elsewhere_are_used_instead(project: Path) -> None:
    env = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"}
    told = diffctl(project, "up", env=env)
    assert told.returncode == 0
    assert told.stdout.splitlines() == [
        "MLflow: http://127.0.0.1:9 (MLFLOW_TRACKING_URI names it: none is started here)",
        "Prefect: http://127.0.0.1:9/api (PREFECT_API_URL names it: none is started here)",
    ]
    asked = diffctl(project, "status", env=env)
    assert asked.returncode == 75
    assert "does not tell what is queued" in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.slow
def test_a_run_with_a_temporary_server_keeps_another_one_out(project: Path) -> None:
    env = {**NOWHERE, "DIFFCTL_PREFECT_PORT": str(free_port()), "DIFFCTL_MLFLOW_PORT": str(free_port())}
    with file_lock(project / HOME / "lock", timeout=0):
        refused = diffctl(project, "up", env=env)
    assert refused.returncode == 1
    assert "another `diffctl run` is at work in this folder" in refused.stderr
    assert not processes_in(project), "MLflow, which had started, is stopped"


@pytest.mark.slow
def test_servers_stay_are_used_by_a_run_and_end_on_down(tmp_path: Path, prefect_database: Path) -> None:
    with_database(tmp_path, prefect_database)
    toy = toy_project(tmp_path)
    be(toy, "train", "Path('url').write_text(os.environ['PREFECT_API_URL'])\nfail(UsageError('no'))")
    with servers_up(toy) as servers:
        status = json.loads(diffctl(toy, "status", "--json", env=servers.env).stdout)
        assert [row["state"] for row in status["servers"]] == ["up", "up"]
        assert all(row["version"] == row["installed"] for row in status["servers"])
        for row in status["servers"]:
            leader = psutil.Process(row["process"])
            assert os.getsid(leader.pid) == leader.pid, "a terminal's end is not theirs"
        environ = psutil.Process(status["servers"][1]["process"]).environ()
        assert environ["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")

        again = diffctl(toy, "up", env=servers.env)
        assert (again.returncode, "starting" in again.stdout) == (0, False)
        run = diffctl(toy, "run", env=servers.env)
        assert run.returncode == 2, run.stderr
        assert (toy / "url").read_text() == servers.prefect
        assert "Failed" not in diffctl(toy, "status", env=servers.env).stdout, "what has ended is not queued"
        assert [row["state"] for row in status["servers"]] == ["up", "up"]

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
        assert "the Prefect server that `diffctl up` started does not answer" in hung.stderr
    assert not processes_in(toy)
