"""`diffctl ui`: MLflow's own UI over the project's runs, in the foreground."""

import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import command, diffctl, environment
from tests.helpers.toy import wait_until_left


def test_a_server_that_is_named_is_only_told(project: Path) -> None:
    told = diffctl(project, "ui", env={"MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:9"})
    assert (told.returncode, told.stdout) == (0, "the runs are at http://127.0.0.1:9\n")


def test_a_port_that_is_taken_is_told(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = diffctl(project, "ui", "--port", str(port))
    assert refused.returncode == 1
    assert refused.stderr == f"diffctl: port {port} of this machine is taken: give another one with --port\n"


@pytest.mark.slow
def test_it_serves_until_ctrl_c(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ui = subprocess.Popen(
        command("ui", "--port", str(port)),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert ui.stdout is not None
    assert ui.stdout.readline() == f"starting MLflow on 127.0.0.1:{port}\n"
    assert ui.stdout.readline() == f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    # What is told answers.
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
        assert b"MLflow" in page.read()
    ui.send_signal(signal.SIGINT)
    output, errors = ui.communicate(timeout=30)
    assert (ui.returncode, output) == (0, "")
    assert "Traceback" not in errors
    wait_until_left(project)
