"""The store: its address, moved and copied projects; experiments, runs and searches are created once."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from diffusion.images.store_meta import Ancestor
from diffusion.layout import MODEL
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.locks import is_held
from tracking import store
from tracking.experiments import SEARCH_LOCK, ensure_experiment, find_by_tags, log_search
from tracking.keys import PARENT, REGISTRY_EXPERIMENT, SEARCH, SEARCH_KEY, SEARCH_ROOT, pretrained_tags
from tracking.registry.registered_models import fetch_version_files, register
from tracking.runs.run_lookup import training_runs
from tracking.spool.delivery import deliver
from tracking.spool.event_log import Spool
from tracking.spool.spool_status import SENT

START = """
import sys
from pathlib import Path
from tracking.experiments import ensure_experiment, ensure_run
from tracking.store import connect, tracking_uri
print("ready", flush=True)
sys.stdin.readline()
client = connect(tracking_uri(Path(sys.argv[1])))
experiment = ensure_experiment(client, "diffctl-digits")
run = ensure_run(client, experiment, sys.argv[2], "a-run", 1)
client.log_metric(run, "loss", 1.0)
print(experiment)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///x/runs.db", "sqlite:///{root}/x/runs.db"),
        ("sqlite:////abs/runs.db", "sqlite:////abs/runs.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql+psycopg://user@host/db", "postgresql+psycopg://user@host/db"),
    ],
)
def test_tracking_uri_is_absolute(tmp_path, monkeypatch, given, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.tracking_uri(tmp_path) == expected.format(root=tmp_path)


def test_folder_name_with_percent_or_question_mark_is_quoted(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "100%41 q?x"
    uri = store.tracking_uri(root)
    assert make_url(uri).database == str(store.database_file(uri)) == str(root / "mlflow.db")


@pytest.mark.slow
def test_processes_create_the_store_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", START, str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    (tmp_path / "mlflow.db.new").write_bytes(b"left by a killed creation")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"and its journal")
    processes = [subprocess.Popen([*command, key], **pipes, text=True) for key in ("a", "b")]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    first, second = [process.communicate("go\n", timeout=120) for process in processes]
    assert first == second == (first[0], "")
    runs = store.connect(store.tracking_uri(tmp_path)).search_runs([first[0].strip()])
    assert [run.data.metrics["loss"] for run in runs] == [1.0] * 2
    assert Path(runs[0].info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")


def test_experiments_have_a_description_and_stay_deleted(uri):
    client = store.connect(uri)
    for name, text in (("diffctl-digits", "*digits*"), (REGISTRY_EXPERIMENT, "diffctl history")):
        experiment = client.get_experiment(ensure_experiment(client, name))
        assert text in experiment.tags["mlflow.note.content"]
    client.delete_experiment(ensure_experiment(client, "diffctl-digits"))
    with pytest.raises(DiffctlError, match="mlflow experiments restore"):
        ensure_experiment(client, "diffctl-digits")


def test_start_tags_name_the_nearest_model_and_the_lineage():
    near = Ancestor(sha256="a" * 64, data="clothes", digest="b" * 64, step=2800)
    far = Ancestor(sha256="c" * 64, data="photos", digest="d" * 64, step=7)
    assert pretrained_tags((near, far)) == {
        "diffctl.init_from": "a" * 64,
        "diffctl.init_from.data": "clothes",
        "diffctl.init_from.data_digest": "b" * 64,
        "diffctl.init_from.step": "2800",
        "diffctl.lineage": f"{'a' * 16} {'c' * 16}",
    }
    assert pretrained_tags(()) == {}


KEY = "k" * 32


def write_trial(folder: Path, search_key: str = KEY) -> None:
    spool = Spool(folder, folder.name, f"trial {folder.name}", "diffctl-digits")
    spool.tags({SEARCH: "rates", SEARCH_KEY: search_key})
    spool.close("FINISHED")


def test_trials_are_children_of_one_run_however_often_they_are_sent(uri, tmp_path, monkeypatch) -> None:
    locked = []

    def find(client, experiments, tags):
        if SEARCH_ROOT in tags:
            locked.append(is_held(SEARCH_LOCK))
        return find_by_tags(client, experiments, tags)

    monkeypatch.setattr("tracking.experiments.find_by_tags", find)
    for key in ("a", "b"):
        write_trial(tmp_path / key)
    for key in ("a", "b", "a"):
        deliver(tmp_path / key, uri)
        (tmp_path / key / SENT).unlink()
    parent, again = (log_search(KEY, "rates", "digits", {"best": 1}, {"best/kid": 0.5}) for _ in range(2))
    assert parent == again
    assert all(locked), "the parent is looked up and created under a lock"
    client = store.connect(uri)
    trials = training_runs(client)
    assert len(trials) == 2, "the search itself is not a training"
    assert {run.data.tags[PARENT] for run in trials} == {parent}
    run = client.get_run(parent)
    assert run.data.tags[SEARCH_ROOT] == KEY
    assert run.data.metrics == {"best/kid": 0.5}
    assert len(client.get_metric_history(parent, "best/kid")) == 1


def test_trial_moves_to_a_later_search_of_the_same_name(uri: str, tmp_path: Path) -> None:
    """The spool writes only changed tags: the second key comes without the search's name."""
    for key in ("1" * 32, "2" * 32):
        write_trial(tmp_path / "training", key)
        deliver(tmp_path / "training", uri)
    client = store.connect(uri)
    (trial,) = training_runs(client)
    parent = client.get_run(trial.data.tags[PARENT]).data.tags
    assert (parent[SEARCH_ROOT], parent[SEARCH]) == ("2" * 32, "rates")


def files(folder):
    return {path.relative_to(folder) for path in (folder / "mlartifacts").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_moved_project_finds_its_artifacts(registered, tmp_path, monkeypatch):
    moved = tmp_path / "a 100%_b"
    moved.mkdir()
    for name in ("mlflow.db", "mlartifacts", "models"):
        (registered / name).rename(moved / name)
    monkeypatch.chdir(moved)
    with pytest.warns(DiffctlWarning, match="moved or copied"):
        assert fetch_version_files("diffctl-digits").files.model.read_bytes() == MODEL.read_bytes()
    assert not (tmp_path / "mlartifacts").exists()


@pytest.mark.slow
def test_copied_project_writes_into_its_own_artifacts(registered, tmp_path_factory, make_model, monkeypatch):
    copy = shutil.copytree(registered, tmp_path_factory.mktemp("copies") / "copy")
    before = files(registered)
    monkeypatch.chdir(copy)
    make_model(2, {(10, 0.0): 0.1})
    with pytest.warns(DiffctlWarning, match="moved or copied"):
        assert register().champion == 2
    assert files(registered) == before
    assert len(files(copy)) > len(before)


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
        client = store.connect(f"sqlite:///{other / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("diffctl-digits")
    assert experiment.artifact_location.startswith(registered.as_uri())
