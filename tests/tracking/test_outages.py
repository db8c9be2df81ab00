"""Servers that die, hang or are not there: a training and a run go on, and what they logged arrives once."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import diffctl, environment
from tests.flows.test_pipeline import started
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.prefect_home import PrefectServer, recorded, with_database
from tests.helpers.toy import be, processes_in, toy_project, wait_for_file
from tests.helpers.training_process import DEADLINE, prepare
from tests.helpers.waiting import wait_until
from tests.tracking.test_sender import eventually, logged, stored, the_run
from tracking.delivery import Sent
from tracking.sender import LOG

pytestmark = pytest.mark.slow

# A training that takes its time between steps, and its last steps only when the file `enough` is there.
PATIENT = """
import sys, time
from pathlib import Path
from diffusion.system.signals import StopRequest
check, steps = StopRequest.raise_if_set, 0
def between_steps(self):
    global steps
    steps += 1
    while not Path("enough").exists():
        time.sleep(0.05)
        if steps < 1400:
            break
    check(self)
StopRequest.raise_if_set = between_steps
sys.argv = ["diffctl", "stage", "train"]
from cli.main import main
main()
"""


@pytest.fixture
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


def train_patiently(folder: Path, uri: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PATIENT],
        cwd=folder,
        env=environment({"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}),
        stderr=subprocess.PIPE,
        text=True,
    )


def run_of(folder: Path) -> tuple[Path, str]:
    """The folder of the project's training, and its key."""
    (run,) = folder.glob("runs/train/*")
    return run, json.loads((run / "run.json").read_text())["key"]


def assert_all_arrived(folder: Path, uri: str) -> None:
    run, key = run_of(folder)
    assert stored(uri, key) == logged(run), "every point once, with its own step and time"
    assert the_run(uri, key).info.status == "FINISHED"


@pytest.mark.long
def test_three_outages_in_one_training_lose_and_double_nothing(project: Path, mlflow: MlflowServer) -> None:
    """Killed, hung and killed again while it trains."""
    prepare(project, steps=1500, log_every=5, save_every=500, preview_every=1500)
    mlflow.start()
    training = train_patiently(project, mlflow.uri)
    eventually(lambda: list(project.glob("runs/train/*/sent.json")), DEADLINE)
    run, _ = run_of(project)

    def arrives() -> None:
        before = Sent.load(run, mlflow.uri).offset
        eventually(lambda: Sent.load(run, mlflow.uri).offset > before)

    def is_missed() -> None:
        before = (run / LOG).read_text().count("MLflow does not answer at")
        eventually(lambda: (run / LOG).read_text().count("MLflow does not answer at") > before)

    for outage in ("killed", "hung", "killed"):
        arrives()
        if outage == "killed":
            mlflow.kill()
            is_missed()
            mlflow.start()
        else:
            mlflow.signal(signal.SIGSTOP)
            is_missed()
            mlflow.signal(signal.SIGCONT)
    arrives()
    assert training.poll() is None, "it must train through all of them"
    (project / "enough").touch()
    assert training.wait(DEADLINE) == 0
    eventually(lambda: Sent.load(run, mlflow.uri).complete)
    eventually(lambda: the_run(mlflow.uri, run_of(project)[1]).info.status == "FINISHED")
    assert_all_arrived(project, mlflow.uri)


@pytest.mark.parametrize("outage", ["dead", pytest.param("hung", marks=pytest.mark.long)])
def test_away_from_beginning_to_end_a_sync_delivers_all(
    project: Path, mlflow: MlflowServer, outage: str
) -> None:
    prepare(project, steps=60, log_every=2, save_every=20, preview_every=60)
    if outage == "hung":
        mlflow.start().signal(signal.SIGSTOP)
    done = diffctl(project, "stage", "train", env={"MLFLOW_TRACKING_URI": mlflow.uri})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (project / "models/unet.safetensors").exists()
    mlflow.signal(signal.SIGCONT) if outage == "hung" else mlflow.start()

    def synced() -> bool:  # the training's own sender may still be at it
        answer = diffctl(project, "sync", env={"MLFLOW_TRACKING_URI": mlflow.uri})
        return answer.returncode == 0 and Sent.load(run_of(project)[0], mlflow.uri).complete

    eventually(synced)
    assert_all_arrived(project, mlflow.uri)


@pytest.fixture
def prefect(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    folder = tmp_path_factory.mktemp("server")
    with_database(folder, prefect_database)
    server = PrefectServer(folder)
    yield server
    server.kill()


WAIT = """
Path("begun-STAGE").write_text("yes")
while not Path("go-STAGE").exists():
    time.sleep(0.02)
"""


@pytest.mark.long
def test_three_outages_of_prefect_in_one_run(tmp_path: Path, prefect: PrefectServer) -> None:
    """Killed and back, hung and back, killed for good: every stage is done once, and the rest without it."""
    folder = toy_project(tmp_path)
    for stage in ("data", "train", "sample"):
        be(folder, stage, WAIT.replace("STAGE", stage))
    prefect.start()
    run = started(folder, url=prefect.url, env={"PREFECT_CLIENT_MAX_RETRIES": "4"})

    wait_for_file(folder / "begun-data", DEADLINE)
    prefect.kill()
    (folder / "go-data").touch()
    wait_until(lambda: (folder / "dvc.lock").exists(), DEADLINE)
    prefect.start()

    wait_for_file(folder / "begun-train", DEADLINE)
    prefect.signal(signal.SIGSTOP)
    (folder / "go-train").touch()
    wait_until(lambda: "train:" in (folder / "dvc.lock").read_text(), DEADLINE)
    prefect.signal(signal.SIGCONT)

    wait_for_file(folder / "begun-sample", DEADLINE)
    # The server hears of tasks by events, which arrive some time after what they tell of.
    complete = {("data", "Completed"), ("train", "Completed")}
    wait_until(lambda: complete <= recorded(prefect.folder).items(), DEADLINE)
    prefect.kill()
    (folder / "go-sample").touch()
    output, errors = run.communicate(timeout=180)
    assert (folder / "page").exists()
    for stage in ("data", "train", "sample", "evaluate", "report"):
        assert output.count(f"{stage} at work") == 1
    assert f"the Prefect server at {prefect.url} failed" in output
    assert "going on without it" in output
    assert "Traceback" not in output + errors
    assert not processes_in(folder)
