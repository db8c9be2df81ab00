"""Scoring during training: no bit of the training changes, and a resumed run has the same scores."""

import json
import signal
from pathlib import Path

import pytest

from tests.conftest import diffctl, write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.prepared import copy_data
from tests.helpers.training_process import model_bytes, signal_at, train_to_the_end
from tracking.spool.event_log import read_events
from tracking.store import connect

pytestmark = pytest.mark.slow

EVALUATING = {"eval_every": 4, "eval_images": 20, "eval_steps": 2, "keep": "best"}


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    copy_data(project)
    return project


def scores(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.glob("runs/train/*/checkpoints/scores.json")
    return json.loads(path.read_text())["steps"]


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("runs/train/*/checkpoints/*.safetensors")}


def validation_points(folder: Path) -> list[tuple[int, str]]:
    (run,) = folder.glob("runs/train/*")
    return [
        (event["step"], name)
        for event in read_events(run)
        if event["kind"] == "metrics"
        for name in event["values"]
        if name.startswith("validation/")
    ]


def test_scoring_changes_no_bit_of_the_training(prepared: Path) -> None:
    train_to_the_end(prepared)
    plain, curve = model_bytes(prepared), (prepared / "plots/loss.csv").read_bytes()
    write_params(prepared, train=EVALUATING)
    assert diffctl(prepared, "stage", "train", "--fresh").returncode == 0
    assert model_bytes(prepared) == plain
    assert (prepared / "plots/loss.csv").read_bytes() == curve
    found = scores(prepared)
    assert list(found) == ["12", "4", "8"]
    best = min(found, key=lambda step: (found[step]["kd_effnet_lite0_64"], int(step)))
    assert list(kept(prepared)) == [f"{int(best):09d}.safetensors"]
    client = connect()
    (experiment,) = [e for e in client.search_experiments() if e.name == "diffctl-digits"]
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.name == f"step-{int(best):09d}"
    logged = {metric.key: metric.value for metric in model.metrics}
    assert logged["validation/kd_effnet_lite0_64"] == pytest.approx(found[best]["kd_effnet_lite0_64"])


@pytest.mark.long
def test_resumed_training_has_the_same_scores(prepared: Path) -> None:
    write_params(prepared, train={**EVALUATING, "log_every": 1})
    train_to_the_end(prepared)
    whole, files, points = scores(prepared), kept(prepared), validation_points(prepared)
    (run,) = prepared.glob("runs/train/*")
    run.rename(prepared / "runs/whole")
    for step in (5, 9):
        assert signal_at(prepared, step, signal.SIGKILL).returncode == -signal.SIGKILL
    train_to_the_end(prepared)
    assert scores(prepared) == whole
    assert kept(prepared) == files
    assert validation_points(prepared) == points


def test_stop_does_not_wait_for_a_score(prepared: Path) -> None:
    write_params(prepared, train={**EVALUATING, "log_every": 1, "eval_images": 1000, "eval_steps": 20})
    stopped = signal_at(prepared, 4, signal.SIGTERM)
    assert stopped.returncode == 143
    (run,) = prepared.glob("runs/train/*")
    assert (run / "state-000000004.sealed").exists()
    assert not (run / "checkpoints").exists(), "the score takes longer than the signal"
    write_params(prepared, train={**EVALUATING, "log_every": 1})
    train_to_the_end(prepared)
    assert list(scores(prepared)) == ["12", "4", "8"]
    assert {step for step, _ in validation_points(prepared)} == {4, 8, 12}
