"""Files of registered models: hostile tags, and projects that were moved or copied with their mlflow.db."""

import shutil
import warnings
from itertools import product

import pytest

from diffusion.layout import MODEL, MODEL_RUNS
from diffusion.system.errors import DiffctlError, DiffctlWarning
from tracking import keys, store
from tracking.registry.registered_models import fetch_scores_of, fetch_version_files, register
from tracking.runs.scored_runs import fetch_model
from tracking.store import connect

NAME = "diffctl-digits"
HOSTILE = ("../../../secret", "0123456789abcdef/../../secret", "0123456789abcdef\n", "0123456789ABCDEF")


def set_tag(name: str, value: str) -> str:
    """Change a tag of version 1 and its run, as anybody with write access can; return the run's id."""
    client = connect()
    run_id = client.get_model_version(NAME, "1").run_id
    client.set_model_version_tag(NAME, "1", name, value)
    client.set_tag(run_id, name, value)
    return run_id


def test_hostile_card_and_sha256_are_refused_before_any_request(registered, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda *_: pytest.fail("a file was requested"))
    for value, fetch in product(HOSTILE, (fetch_scores_of, fetch_version_files)):
        set_tag(keys.CARD, value)
        with pytest.raises(DiffctlError, match=rf"tag {keys.CARD}: expected 16 hex digits[^\n]*$"):
            fetch(NAME, 1)
    run_id = set_tag(keys.FILE_SHA256, HOSTILE[0])
    with pytest.raises(DiffctlError, match=keys.FILE_SHA256):
        fetch_model(run_id)
    assert not [path for path in (registered / MODEL_RUNS).rglob("*") if path.is_file()]


def files(folder):
    return {path.relative_to(folder) for path in (folder / "mlartifacts").rglob("*") if path.is_file()}


def test_moved_project_finds_its_artifacts(registered, tmp_path, monkeypatch):
    moved = tmp_path / "a 100%_b"
    moved.mkdir()
    for name in ("mlflow.db", "mlartifacts", "models"):
        (registered / name).rename(moved / name)
    monkeypatch.chdir(moved)
    with pytest.warns(DiffctlWarning, match="moved or copied"):
        assert fetch_version_files(NAME).files.model.read_bytes() == MODEL.read_bytes()
    assert not (tmp_path / "mlartifacts").exists()


def test_copied_project_writes_into_its_own_artifacts(registered, tmp_path_factory, make_model, monkeypatch):
    copy = shutil.copytree(registered, tmp_path_factory.mktemp("copies") / "copy")
    before = files(registered)
    monkeypatch.chdir(copy)
    make_model(2, {(10, 0.0): 0.1})
    with pytest.warns(DiffctlWarning, match="moved or copied"):
        assert register().champion == 2
    assert files(registered) == before
    assert len(files(copy)) > len(before)
    monkeypatch.chdir(registered)
    shutil.rmtree(copy)
    shutil.rmtree(MODEL_RUNS, ignore_errors=True)
    fetch_version_files(NAME)


@pytest.mark.parametrize("how", ["copied alone", "opened through a link"])
def test_database_of_an_unmoved_project_is_unchanged(registered, tmp_path_factory, monkeypatch, how):
    other = tmp_path_factory.mktemp("elsewhere") / "other"
    monkeypatch.setattr(store, "_repaired", set())
    if how == "copied alone":
        other.mkdir()
        shutil.copy(registered / "mlflow.db", other)
    else:
        other.symlink_to(registered)
    with warnings.catch_warnings(action="error"):
        experiment = connect(f"sqlite:///{other / 'mlflow.db'}").get_experiment_by_name(NAME)
    assert experiment.artifact_location.startswith(registered.as_uri())
