"""`diffctl run` on the real graph and real digits: stopped, resumed, complete, then up to date."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from diffusion.layout import MODEL
from tests.conftest import command, diffctl, environment
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.small import own_code, small_project
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path: Path, prefect_database: Path) -> Path:
    with_database(tmp_path, prefect_database)
    return small_project(tmp_path, train={"steps": 400, "save_every": 10})


def test_stopped_run_resumes_and_registers_its_model(folder: Path) -> None:
    env = own_code(folder)
    run = subprocess.Popen(command("run"), cwd=folder, env=environment(env), start_new_session=True)
    wait_until(lambda: any(folder.glob("runs/train/*/state-*")), 240)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    assert not (folder / MODEL).exists()

    resumed = diffctl(folder, "run", env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert "train: resuming after step" in resumed.stdout
    assert "model:  diffctl-digits version 1: promoted" in resumed.stdout
    assert "report: report/index.html" in resumed.stdout
    assert "make ui" in resumed.stdout
    assert "Traceback" not in resumed.stdout + resumed.stderr
    table = resumed.stdout[resumed.stdout.index("STEPS") :].splitlines()
    assert table[0].split() == ["STEPS", "ETA", "fd_effnet_lite0_64", "excess", "kd_effnet_lite0_64"]
    assert [row.split()[:2] for row in table[1:5]] == [["2", "0"], ["2", "1"], ["3", "0"], ["3", "1"]]
    assert (folder / "report/index.html").stat().st_size > 10_000
    states = recorded(folder)
    assert states["pipeline"] == states["sweep"] == states["steps3-eta1"] == states["register"] == "Completed"

    model = (folder / MODEL).read_bytes()
    scores = (folder / "metrics/scores.json").read_bytes()
    again = diffctl(folder, "run", env=env)
    assert again.stdout.count(": up to date\n") == 6
    assert "version 1: it is champion already" in again.stdout

    fresh = diffctl(folder, "run", "--fresh", env=env)
    assert "train: 400 steps" in fresh.stdout
    assert "==> evaluate: up to date" in fresh.stdout, "the same run gives the same bytes"
    assert (folder / MODEL).read_bytes() == model
    assert (folder / "metrics/scores.json").read_bytes() == scores
    cells = {f"steps{steps}-eta{eta}" for steps in (2, 3) for eta in (0, 1)}
    assert json.loads(scores)["cells"].keys() == cells
    wait_until(lambda: not processes_in(folder), 90)
