"""`diffctl check` reports where trainings resume, and the stage resumes there."""

import json
from pathlib import Path

import pytest

from tests.conftest import diffctl, write_params
from tests.helpers.training_process import prepare

CLASSIFIER = {
    "model": {"channels": 8, "channel_mult": [1, 2]},
    "train": {"steps": 4, "batch_size": 4, "lr": 0.1},
}


def said_of(folder: Path) -> dict[str, str]:
    """Return the message of each subject."""
    done = diffctl(folder, "check", "--json")
    return {finding["subject"]: finding["message"] for finding in json.loads(done.stdout)}


def trained(folder: Path, stage: str = "train") -> str:
    done = diffctl(folder, "stage", stage, env={"MLFLOW_TRACKING_URI": ""})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.long
def test_check_reports_where_trainings_resume(project: Path) -> None:
    prepare(project)
    settings = {"lr": 0.002, "steps": 6, "save_every": 4}
    write_params(project, train=settings, classifier=CLASSIFIER)
    said = said_of(project)
    assert (said["training"], said["classifier"]) == ("begins at step 0 of 6", "begins at step 0 of 4")
    trained(project)
    (first,) = (project / "runs/train").iterdir()
    trained(project, "classifier")
    assert said_of(project)["training"] == f"goes on after step 6 of 6 in runs/train/{first.name}"
    longer = {"classifier": {**CLASSIFIER, "train": {**CLASSIFIER["train"], "steps": 8}}}
    write_params(project, train={**settings, "steps": 12}, **longer)
    said, why = said_of(project), "train.steps 6 → 12 changes no step before"
    assert said["training"] == f"goes on from step 6 of runs/train/{first.name}: {why}"
    assert said["classifier"].startswith("goes on from step 4 of runs/classifier/")
    assert f"train: {said['training']}\n" in trained(project)
    assert f"classifier: {said['classifier']}\n" in trained(project, "classifier")
    write_params(project, train={**settings, "seed": 5}, **longer)
    assert said_of(project)["training"].startswith("begun afresh, since the configuration is another one: ")
