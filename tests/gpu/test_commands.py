"""The command line on a GPU: `diffctl run` whole, a training that is killed, and images that Ray makes."""

import json
import signal
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import pytest

from tests.conftest import diffctl
from tests.gpu.devices import LONG_ON_CPU
from tests.helpers.mlflow_server import empty_database
from tests.helpers.prefect_home import with_database
from tests.helpers.small import own_code, small_project
from tests.helpers.training_process import loss_curve, prepare, signal_at, train_to_the_end, uninterrupted

CHOICE = "DIFFCTL_DEVICE"
# A process that lacks a package tells it by an exit code only.
pytestmark = [
    pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is missing")
    for name in ("typer", "mlflow", "prefect", "dvc")
]


@pytest.mark.parametrize("device", LONG_ON_CPU)
def test_a_run_is_whole(device, tmp_path: Path, prefect_database: Path) -> None:
    with_database(tmp_path, prefect_database)
    folder = small_project(tmp_path)
    done = diffctl(folder, "run", env={**own_code(folder), CHOICE: device.type})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    scores = json.loads((folder / "metrics/scores.json").read_text())
    assert len(scores["cells"]) == 4
    assert (folder / "report/index.html").stat().st_size > 10_000


@pytest.mark.parametrize("device", LONG_ON_CPU)
def test_killed_it_goes_on_to_the_same_loss(device, project: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    monkeypatch.setenv(CHOICE, device.type)
    steps = 40 if device.type == "cpu" else 400  # a GPU must not be at the end before it is killed
    prepare(project, steps=steps, log_every=1, save_every=6, preview_every=steps)
    uninterrupted(project)
    wanted = [row["loss"] for row in loss_curve(project)]
    assert signal_at(project, steps // 4, signal.SIGKILL).returncode == -signal.SIGKILL
    assert "resuming after step" in train_to_the_end(project).stderr
    found = [row["loss"] for row in loss_curve(project)]
    assert len(found) == steps
    if device.type == "cpu":
        assert found == wanted
    else:  # sums of gradients come in another order there each time
        assert fmean(found[-50:]) == pytest.approx(fmean(wanted[-50:]), rel=0.02)
