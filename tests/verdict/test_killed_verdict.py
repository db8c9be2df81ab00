"""`diffctl verdict` as a process: killed in each phase, resumed, and its runs in MLflow."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion.system.locks import is_held
from diffusion.trials.trial_runs import trial_dir
from tests.conftest import diffctl, params, start_diffctl, write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.prepared import copy_reference
from tests.helpers.training_process import logged_steps
from tests.helpers.waiting import wait_until
from tracking.keys import KEY, PARENT, VERDICT
from tracking.store import connect

SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"steps": 20, "log_every": 1, "save_every": 4, "preview_every": 20},
    "sample": {"num_images": 24, "batch_size": 8},
    "sweep": {"steps": [2], "eta": [0.0]},
}
LINE = ("verdict", "train.lr.rate=0.004", "--pairs", "2..2", "--json")
DEADLINE = 900.0  # seconds, on a loaded machine


def phases(folder: Path) -> list[Callable[[], bool]]:
    """Return whether each phase has begun: first training, its images, its scores, more images, MLflow."""
    (verdict,) = folder.glob("runs/verdict/*") if (folder / "runs/verdict").exists() else (folder / "none",)
    first, second = trial_dir(verdict, 0), trial_dir(verdict, 1)
    return [
        lambda: max(logged_steps(folder), default=0) >= 6,
        lambda: (first / "model.safetensors").exists(),
        lambda: (first / "samples").exists(),
        lambda: (second / "params.yaml").exists(),
        lambda: (verdict / "progress.json").exists(),
        lambda: (folder / "runs/train/verdict.lock").exists(),
    ]


def kill_in_phase(folder: Path, number: int) -> None:
    """Start the verdict, and kill it with its training when a phase has begun."""
    process = start_diffctl(folder, *LINE)

    def wait(happened: Callable[[], bool]) -> None:
        wait_until(lambda: process.poll() is not None or happened(), DEADLINE)

    wait(lambda: any(folder.glob("runs/verdict/*/trials/*")))
    wait(phases(folder)[number])
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(map(is_held, folder.glob("runs/**/*lock"))), DEADLINE)


def result(text: str) -> dict[str, Any]:
    """Return the JSON of a verdict without its durations."""
    values: dict[str, Any] = json.loads(text)
    values.pop("seconds")
    return values


@pytest.mark.long
def test_verdict_killed_in_each_phase_ends_alike(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    whole = tmp_path_factory.mktemp("whole")
    for folder in (whole, project):
        write_params(folder, **SETTINGS)
        copy_reference(folder)
    env = {"MLFLOW_TRACKING_URI": empty_database(whole / "mlflow.db")}
    uninterrupted = start_diffctl(whole, *LINE, env=env)
    for number in range(6):
        kill_in_phase(project, number)
    process = start_diffctl(project, *LINE)
    (end, said), (wanted, problem) = process.communicate(), uninterrupted.communicate()
    assert (process.returncode, uninterrupted.returncode) == (0, 0), said + problem
    assert result(end) == result(wanted)
    assert result(end)["images"] > SETTINGS["sample"]["num_images"]
    assert not any((project / name).exists() for name in ("samples", "metrics", "models"))

    client = connect(os.environ["MLFLOW_TRACKING_URI"])
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{VERDICT}` LIKE '%'")
    trainings = [run for run in runs if KEY in run.data.tags]
    pairs = [run for run in runs if PARENT in run.data.tags]
    (parent,) = (run for run in runs if run not in trainings and run not in pairs)
    assert (len(trainings), len(pairs)) == (4, 2)
    (change,) = json.loads(end)["changes"]
    gaps = sorted(run.data.metrics["gap/fd_effnet_lite0_64"] for run in pairs)
    metric = json.loads(end)["metric"]
    assert gaps == pytest.approx(
        sorted(pair["change"][metric] - pair["control"][metric] for pair in change["pairs"])
    )
    assert parent.data.metrics["gap/0"] == pytest.approx(change["gap"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "verdict.json",
        "verdict.html",
    }


@pytest.mark.long
def test_training_of_a_verdict_is_that_of_the_pipeline(project: Path) -> None:
    """Pair 0 has the project's own seed: it resumes the training that `stage train` made."""
    write_params(project, **SETTINGS)
    copy_reference(project)
    assert diffctl(project, "stage", "train").returncode == 0
    done = diffctl(project, *LINE, "--budget", "30m")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming after step 20 of 20") >= 1
    assert len(list(project.glob("runs/train/*/config.json"))) == 4
    assert "2 pairs need about" in done.stderr
    (verdict,) = project.glob("runs/verdict/*")
    own, shared = project / "models/model.safetensors", trial_dir(verdict, 0) / "model.safetensors"
    assert own.read_bytes() == shared.read_bytes()
    refused = diffctl(project, "verdict", "train.lr.rate=0.001", "--budget", "1s")
    assert (refused.returncode, "--budget: 3 pairs need about" in refused.stderr) == (2, True)
    assert params()["train"]["seed"] == 0


@pytest.mark.long
def test_verdict_on_ray_by_the_validation_loss(project: Path) -> None:
    """The losses are those of the trainings' curves, and a verdict here finds all of Ray's trainings."""
    write_params(project, **SETTINGS)
    copy_reference(project)
    line = ("verdict", "train.lr.rate=0.004", "--pairs", "2..2", "--metric", "loss", "--json")
    done = diffctl(project, *line, "--ray", "--max-parallel", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (change,) = found["changes"]
    (verdict,) = project.glob("runs/verdict/*")
    for number, pair in enumerate(change["pairs"]):
        for arm, name in enumerate(("control", "change")):
            last = (trial_dir(verdict, 2 * number + arm) / "loss.csv").read_text().splitlines()[-1]
            assert f"{pair[name]['val_loss']:.6g}" in last.split(",")
    assert (found["cell"], found["metric"]) == (None, "val_loss")
    again = diffctl(project, *line)
    assert "pair 1: params.yaml" not in again.stderr
    assert result(again.stdout)["changes"] == found["changes"]
