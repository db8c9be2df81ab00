"""Projects of commits 5cf73ea and 59a3ea9c are still usable. README.md in each fixture lists its files."""

import gzip
import json
import shutil
import sqlite3

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cli import main
from diffusion.config import load, parse
from diffusion.images.store import open_store
from diffusion.images.store_meta import CellMeta
from diffusion.layout import AVERAGES, REPORT, SAMPLES, SCORES
from diffusion.layout import MODEL as MODEL_FILE
from diffusion.model.model_file import load_model, read_artefact
from diffusion.model.posthoc_ema import Snapshots
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import SAMPLING_VERSION, describe_cell, settings_card
from diffusion.protocol.scores_document import read_scores
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.renamed import translate
from flows.stage_code import STAGES
from serving.model_source import ChampionSource
from tests.conftest import ROOT, run_python
from tests.helpers.networks import assert_equal_but_for_rounding
from tests.helpers.small import git
from tracking.keys import FILE_SHA256, FORMAT
from tracking.registry.champion_log import make_move, read_history
from tracking.registry.promotion import Override, apply_gate
from tracking.store import connect

OLD = ROOT / "tests/fixtures/old_project"
MODEL = OLD / "models/unet.safetensors"
MODEL_SHA256 = "83500e8a0953ed41c32201b86d9c8670f48a7756908c1263daf88f59e0f6342a"
CHAMPION_SHA256 = "0ce19de798f2bc2c80ff69040a9b6db6f509701f2deb3ca26a99830004eab9d3"
SETTING = "7732907d43b56f74"
CELL = "steps2-eta0-ema0.15"
UNDELIVERED = "cfe489803e714234"

PREVIOUS = ROOT / "tests/fixtures/project_59a3ea9"
PREVIOUS_DELIVERED, PREVIOUS_UNDELIVERED = "36876eec4a9cd719", "ae61ea8e935bab9a"


def restore(fixture, folder, monkeypatch):
    """Copy a project with its MLflow store and make it the working directory."""
    shutil.copytree(fixture, folder)
    sql = gzip.decompress((fixture / "mlflow.sql.gz").read_bytes()).decode()
    database = sqlite3.connect(folder / "mlflow.db")
    database.executescript(sql)
    database.close()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The project of 5cf73ea with today's keys in params.yaml."""
    folder = restore(OLD, tmp_path / "old", monkeypatch)
    sections = translate("params", yaml.safe_load((folder / "params.yaml").read_text()))
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    return folder


@pytest.fixture
def previous(tmp_path, monkeypatch):
    """The project of 59a3ea9c."""
    return restore(PREVIOUS, tmp_path / "previous", monkeypatch)


def run(*arguments):
    """Run a command in this process and return its stdout."""
    result = CliRunner().invoke(main.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_old_keys_of_params_are_refused_with_their_new_names():
    with pytest.raises(UsageError) as refusal:
        load(OLD / "params.yaml")
    for old, new in {
        "train.averages.widths": "train.ema_profiles.sigma_rel",
        "train.lr.course": "train.lr.schedule",
    }.items():
        assert f"{old} was renamed, write {new}" in str(refusal.value)
    sections = yaml.safe_load((OLD / "params.yaml").read_text())
    assert parse(translate("params", sections), "here").train.ema_profiles


def test_identity_of_an_old_model_file_is_unchanged():
    artefact = read_artefact(MODEL)
    assert artefact.model_sha256 == MODEL_SHA256
    assert artefact.training == {"setting": SETTING, "seed": 0}
    assert artefact.model_copy().model_sha256 == MODEL_SHA256
    assert artefact.model_copy(update={"step": 11}).model_sha256 != MODEL_SHA256


def test_old_snapshots_of_ema_profiles_are_read(old):
    snapshots = Snapshots.of(AVERAGES)
    assert snapshots.sigma_rels == [0.05, 0.1]
    assert snapshots.reconstruct(0.07)[1].step == 12


@pytest.mark.slow
def test_old_champion_reproduces_the_images_of_its_cell(old):
    settings = ["--steps", "2", "--guidance", "1", "--guidance-interval", "0.1:10"]
    run("sample", "--champion", "--num", "20", "--out", "new.npz", *settings)
    stored = open_store(SAMPLES / CELL, CellMeta)
    assert stored.meta["card"]["model_sha256"] == CHAMPION_SHA256
    difference = np.abs(np.load("new.npz")["arr_0"].astype(int) - stored.images[:].astype(int))
    assert difference.mean() < 1  # bf16 differs a little between processors


def test_card_of_an_old_cell_matches_the_same_settings_today(old):
    card = open_store(SAMPLES / CELL, CellMeta).meta["card"]
    settings = SampleSettings(steps=2, guidance=1.0, guidance_interval=(0.1, 10.0))
    today = settings_card(settings)
    assert not differing_fields([{field: card.get(field) for field in today}, today])


def test_old_name_of_the_model_file_is_refused_with_the_new_name(old):
    with pytest.raises(UsageError, match=r"models/unet\.safetensors is of an earlier version: rename it to"):
        load_model(MODEL_FILE)


@pytest.mark.slow
def test_old_scores_are_read_compared_and_used_for_a_budget(old):
    scores = read_scores(SCORES)
    assert scores.training.setting == SETTING
    assert scores.best.cell == CELL
    assert CELL in run("compare", str(SCORES), str(SCORES))
    run("sample", "--champion", "--budget", "4", "--num", "2", "--out", "x.npz")


@pytest.mark.slow
def test_old_champion_is_used_and_restored_with_old_params(old):
    shutil.copy(OLD / "params.yaml", "params.yaml")
    run("sample", "--champion", "--num", "1", "--out", "one.png")
    assert ChampionSource("diffctl-digits").fetch().version == 1
    client = connect()
    first = client.get_model_version("diffctl-digits", "1")
    client.create_model_version("diffctl-digits", first.source, first.run_id, first.tags)
    history = read_history(client, "diffctl-digits")
    make_move(client, history, how="force", after=2, reason="as of today")
    run("rollback", "--reason", "the old one was better")
    assert "champion is version 1" in run("history")
    assert CELL[:11] in run("history", "--json")


@pytest.mark.parametrize("number", [1, 9])
def test_champion_of_an_unreadable_format_is_reported_by_its_format(old, number):
    client = connect()
    client.delete_model_version_tag("diffctl-digits", "1", FILE_SHA256)
    if number != 1:
        client.set_model_version_tag("diffctl-digits", "1", FORMAT, str(number))
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


def test_undelivered_spool_of_an_old_training_is_delivered(old):
    found, client = delivered_run(UNDELIVERED), connect()
    assert found.info.status == "FINISHED"
    assert found.data.params["train.seed"] == "1"
    assert found.data.metrics["loss"] == pytest.approx(0.7774300773938497)
    (weights,) = client.list_artifacts(found.info.run_id, "weights")
    (stored,) = (OLD / "runs/train" / UNDELIVERED / "outbox").rglob("*.safetensors")
    assert weights.file_size == stored.stat().st_size


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
    compared = run("compare", str(SCORES), PREVIOUS_DELIVERED)
    assert all(name in compared for name in scores.cells)
    assert "left out" not in compared


def test_undelivered_spool_of_59a3ea9c_is_delivered(previous):
    found = delivered_run(PREVIOUS_UNDELIVERED)
    assert (found.info.status, found.data.params["train.seed"]) == ("FINISHED", "1")
    (stored,) = (PREVIOUS / "runs/train" / PREVIOUS_UNDELIVERED / "outbox").rglob("*.safetensors")
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
