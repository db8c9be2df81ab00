"""A project that was moved or copied with its mlflow.db, which contains absolute paths."""

import shutil
import warnings

import pytest

from diffusion.layout import MODEL, MODEL_RUNS
from diffusion.system.errors import DiffctlWarning
from tracking import store
from tracking.registry.model_registry import register
from tracking.registry.registered_models import fetch_champion
from tracking.store import connect


@pytest.fixture
def registered(here, make_model):
    """A project with a champion."""
    make_model(1)
    register()
    return here


def files(folder):
    return {path.relative_to(folder) for path in (folder / "mlartifacts").rglob("*") if path.is_file()}


def test_moved_project_finds_its_artifacts(registered, tmp_path, monkeypatch):
    inside = [path for path in registered.iterdir() if path.name != "runs"]
    moved = tmp_path / "a 100%_b"
    moved.mkdir()
    for path in inside:
        path.rename(moved / path.name)
    monkeypatch.chdir(moved)
    with pytest.warns(DiffctlWarning, match="moved or copied"):
        assert fetch_champion("diffctl-digits").read_bytes() == MODEL.read_bytes()
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
    fetch_champion("diffctl-digits")


def test_database_that_was_copied_alone_is_unchanged(registered, tmp_path_factory):
    copy = shutil.copy(registered / "mlflow.db", tmp_path_factory.mktemp("backups"))
    with warnings.catch_warnings(action="error"):
        experiment = connect(f"sqlite:///{copy}").get_experiment_by_name("diffctl-digits")
    assert experiment.artifact_location.startswith(registered.as_uri())


def test_project_that_is_opened_through_a_link_is_unchanged(registered, tmp_path_factory, monkeypatch):
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(registered)
    monkeypatch.setattr(store, "_repaired", set())
    with warnings.catch_warnings(action="error"):
        client = connect(f"sqlite:///{link / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("diffctl-digits")
    assert experiment.artifact_location.startswith(registered.as_uri())
