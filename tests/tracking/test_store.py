import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.system import locks
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, file_lock, is_held
from tracking import store
from tracking.names import REGISTRY_EXPERIMENT
from tracking.reach import MlflowAway, public

START = """
import sys
from pathlib import Path
from tracking.store import connect, ensure_experiment, ensure_run, tracking_uri
print("ready", flush=True)
sys.stdin.readline()
client = connect(tracking_uri(Path(sys.argv[1])))
experiment = ensure_experiment(client, "diffctl-digits")
run = ensure_run(client, experiment, sys.argv[2], "a-run", 1)
client.log_metric(run, "loss", 1.0)
print(experiment)
"""


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_default_is_an_absolute_sqlite_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.database_file(store.tracking_uri()) == tmp_path / "mlflow.db"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///x/runs.db", "sqlite:///{root}/x/runs.db"),
        ("sqlite:////abs/runs.db", "sqlite:////abs/runs.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql+psycopg://user@host/db", "postgresql+psycopg://user@host/db"),
    ],
)
def test_the_environment_is_respected(tmp_path, monkeypatch, given, meant):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.tracking_uri(tmp_path) == meant.format(root=tmp_path)


@pytest.mark.parametrize("folder", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused(monkeypatch, folder):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder)
    with pytest.raises(UsageError, match="sqlite"):
        store.tracking_uri()


def test_a_password_is_never_shown():
    assert public("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert public("http://host:5000") == "http://host:5000"
    assert public("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    uri = "http://me:secret@127.0.0.1:1"
    with pytest.raises(MlflowAway) as caught, store.failures(uri):
        store.connect(uri).get_experiment_by_name("x")
    assert "secret" not in str(caught.value)
    assert "http://127.0.0.1:1" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
def test_processes_create_the_store_at_once(tmp_path, count):
    def start(key: int) -> subprocess.Popen:
        arguments = [sys.executable, "-W", "error::ResourceWarning", "-c", START, str(tmp_path), str(key)]
        return subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    (tmp_path / "mlflow.db.new").write_bytes(b"what a killed creation left")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"and its journal")
    processes = [start(key) for key in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    results = [process.communicate("go\n", timeout=120) for process in processes]
    assert [error for _, error in results] == [""] * count
    assert len({output for output, _ in results}) == 1
    client = store.connect(store.tracking_uri(tmp_path))
    runs = client.search_runs([results[0][0].strip()])
    assert len(runs) == count
    assert {run.data.metrics["loss"] for run in runs} == {1.0}
    assert Path(runs[0].info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")


def test_a_run_is_found_again_by_its_key(tmp_path):
    client = store.connect(store.tracking_uri(tmp_path))
    experiment = store.ensure_experiment(client, "diffctl-digits")
    run = store.ensure_run(client, experiment, "key", "name", 12345)
    assert store.ensure_run(client, experiment, "key", "name", 99999) == run
    assert client.get_run(run).info.start_time == 12345
    assert store.ensure_run(client, experiment, "other", "name", 1) != run


def test_an_experiment_says_what_it_is(tmp_path):
    client = store.connect(store.tracking_uri(tmp_path))
    for name, told in (
        ("diffctl-digits", "models of *digits*"),
        (REGISTRY_EXPERIMENT, "Delete nothing here"),
    ):
        experiment = client.get_experiment(store.ensure_experiment(client, name))
        assert told in experiment.tags["mlflow.note.content"]


def test_a_deleted_experiment_is_named_with_its_remedy(tmp_path):
    client = store.connect(store.tracking_uri(tmp_path))
    client.delete_experiment(store.ensure_experiment(client, "diffctl-digits"))
    with pytest.raises(DiffctlError, match="mlflow experiments restore"):
        store.ensure_experiment(client, "diffctl-digits")


def test_a_lock_dies_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from diffusion.system.locks import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    assert not is_held(path)
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_held(path)
    with pytest.raises(LockBusy), file_lock(path, timeout=0):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with file_lock(path, timeout=0):
        assert is_held(path)


def test_who_waits_for_a_lock_that_is_deleted_takes_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    first, between = file_lock(path), file_lock(path)
    first.__enter__()

    def delete(seconds):  # while the last one waits
        monkeypatch.undo()
        path.unlink()
        between.__enter__()
        first.__exit__(None, None, None)

    monkeypatch.setattr(locks.time, "sleep", delete)
    with pytest.raises(LockBusy), file_lock(path, timeout=0):
        pass
    path.unlink()
    between.__exit__(None, None, None)
    with file_lock(path, timeout=0):
        assert is_held(path)


def test_a_planted_link_is_no_lock(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(DiffctlError, match="lock is a link, and a lock is none"),
        file_lock(tmp_path / "lock"),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()
