"""The project of commit 59a3ea9c is still usable. README.md in its fixture lists its files."""

import gzip
import json
import shutil
import sqlite3

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.images.store import open_store
from diffusion.images.store_meta import CellMeta
from diffusion.layout import MODEL as MODEL_FILE
from diffusion.layout import REPORT, SAMPLES, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import SAMPLING_VERSION, describe_cell
from diffusion.protocol.scores_document import read_scores
from diffusion.system.errors import DiffctlError
from flows.stage_code import STAGES
from tests.conftest import ROOT, run_python
from tests.helpers.networks import assert_equal_but_for_rounding
from tests.helpers.small import git
from tracking.keys import FORMAT
from tracking.registry.promotion import Override, apply_gate
from tracking.store import connect

PROJECT = ROOT / "tests/fixtures/project_59a3ea9"
DELIVERED, UNDELIVERED = "36876eec4a9cd719", "ae61ea8e935bab9a"


@pytest.fixture
def previous(tmp_path, monkeypatch):
    """A copy of the project with its MLflow store, the working directory."""
    folder = tmp_path / "previous"
    shutil.copytree(PROJECT, folder)
    sql = gzip.decompress((PROJECT / "mlflow.sql.gz").read_bytes()).decode()
    database = sqlite3.connect(folder / "mlflow.db")
    database.executescript(sql)
    database.close()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def run(*arguments):
    """Run a command in this process and return its stdout."""
    result = CliRunner().invoke(main.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("number", ["2", "9"])
def test_champion_of_an_unreadable_format_is_reported_by_its_format(previous, number):
    client = connect()
    client.set_model_version_tag("diffctl-digits", "1", FORMAT, number)
    with pytest.raises(DiffctlError, match=rf"format {number}, .*docs upgrading"):
        run("sample", "--champion", "--num", "1", "--out", "one.png")
    decision = apply_gate(client, "diffctl-digits", None, read_scores(SCORES), Override(dry_run=True))
    assert not decision.passed
    assert f"format {number}," in decision.reason


def delivered_run(fingerprint):
    """Deliver the spools; return the run in MLflow of the training with this fingerprint."""
    run("sync")
    client = connect()
    experiment = client.get_experiment_by_name("diffctl-digits")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`diffctl.fingerprint` = '{fingerprint}'")
    return found


@pytest.mark.slow
def test_model_and_champion_of_59a3ea9c_sample_the_images_of_their_cell(previous):
    assert "champion is version 1" in run("history")
    for options, out in (([], "model.npz"), (["--champion"], "champion.npz")):
        run("sample", *options, "--num", "40", "--steps", "2", "--eta", "0", "--out", out)
    images = np.load("model.npz")["arr_0"]
    assert np.array_equal(images, np.load("champion.npz")["arr_0"])
    stored = open_store(SAMPLES / "steps2-eta0", CellMeta)
    assert stored.meta["card"]["model_sha256"] == read_artefact(MODEL_FILE).model_sha256
    if stored.meta["card"]["sampling_version"] == SAMPLING_VERSION:
        assert_equal_but_for_rounding(images, stored.images[:])


def test_scores_of_59a3ea9c_are_compared_with_those_in_mlflow(previous):
    scores = read_scores(SCORES)
    compared = run("compare", str(SCORES), DELIVERED)
    assert all(name in compared for name in scores.cells)
    assert "left out" not in compared


def test_undelivered_spool_of_59a3ea9c_is_delivered(previous):
    found = delivered_run(UNDELIVERED)
    assert (found.info.status, found.data.params["train.seed"]) == ("FINISHED", "1")
    (stored,) = (PROJECT / "runs/train" / UNDELIVERED / "outbox").rglob("*.safetensors")
    (weights,) = connect().list_artifacts(found.info.run_id, "weights")
    assert weights.file_size == stored.stat().st_size


VERSIONS = {"evaluation", "sampling_version", "sampling_torch", "torch", "torch_fidelity"}


@pytest.mark.slow
def test_scores_of_today_have_the_protocol_of_59a3ea9c(previous):
    before = read_scores(SCORES)
    for stage in ("data", "report", "reference", "sample", "evaluate"):  # the report is of the old scores
        run("stage", stage)
    assert describe_cell(before.cells[before.best.cell].axes) in (REPORT / "index.html").read_text()
    after = read_scores(SCORES)
    assert after.cells.keys() == before.cells.keys()
    for name, cell in after.cells.items():
        assert differing_fields([before.cells[name].card, cell.card]).keys() <= VERSIONS


@pytest.mark.slow
def test_only_the_code_and_missing_folders_differ_from_dvc_lock_of_59a3ea9c(previous):
    for name in ("dvc.yaml", "code.yaml", ".dvc"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, previous / name)
    git(previous, "init", "--quiet")
    done = run_python(previous, "-m", "dvc", "status", "--json", *STAGES)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)
    changed = {name for stage in stages.values() for one in stage for name in one.get("changed deps", ())}
    assert changed == {"code.yaml", "data/prepared", "data/reference", "models/ema"}
    assert "metrics/scores.json" not in stages["evaluate"][-1]["changed outs"]  # the only one without a cache
