"""`diffctl runs`, `runs reap` and `sync`: the states of trainings, and their delivery to MLflow."""

import json
import re
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.actions.registry.tracked_runs import _show_runs
from diffusion.layout import TRAIN_RUNS
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import UsageError
from diffusion.system.files import write_json
from diffusion.system.locks import file_lock
from diffusion.train.checkpoint.run_dir import RunDir
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database, free_port
from tests.helpers.spools import write_training
from tracking import keys
from tracking.experiments import ensure_experiment
from tracking.runs.run_lookup import find_run, list_runs, reap
from tracking.spool.event_log import Spool, read_events
from tracking.spool.sender import deliver_all
from tracking.spool.spool_status import read_status
from tracking.store import connect

HOUR = 3_600_000  # milliseconds


@pytest.fixture(autouse=True)
def here(project):
    """A project with an empty MLflow store."""
    empty_database(project / "mlflow.db")
    return project


def test_overview_distinguishes_running_dead_and_finished_runs(here):
    for index, end in enumerate((None, "FINISHED", "FAILED", "KILLED")):
        write_training(f"key{index}", f"{index}" * 16, end)
    with file_lock(write_training("running", "r" * 16, None) / "lock"):
        rows, problem = list_runs()
        assert problem is None
        states = {row.fingerprint[0]: row.state for row in rows}
        assert states == {"0": "dead", "1": "finished", "2": "failed", "3": "stopped", "r": "running"}
        assert all(row.undelivered and row.run_id is None for row in rows)
        assert {(row.step, row.steps) for row in rows} == {(20, 20)}
        deliver_all()
        assert [row.undelivered for row in list_runs()[0]] == [False] * 5
        assert [one.name for one in reap()] == ["digits-00000000"]
        assert reap() == []
        assert find_run("digits-00000000").info.status == "KILLED"
        with pytest.raises(UsageError, match="running here"):
            reap(["digits-rrrrrrrr"])


def test_copied_project_is_delivered_where_its_store_was(here, tmp_path_factory, monkeypatch):
    write_training()
    deliver_all()
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(here, copy)
    monkeypatch.chdir(copy)
    assert [row.undelivered for row in list_runs()[0]] == [False]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('other')}/mlflow.db")
    assert [row.undelivered for row in list_runs()[0]] == [True]


def test_run_without_a_folder_is_listed_and_reaped_by_name(here):
    folder = write_training(end=None)
    deliver_all()
    for path in (folder / "events.jsonl", folder / "sent.json"):
        path.unlink()
    (row,) = list_runs()[0]
    assert (row.state, row.folder) == ("running", None)
    assert reap() == []
    reap([row.run_id])
    assert find_run(row.run_id).info.status == "KILLED"
    with pytest.raises(UsageError, match="not running"):
        reap([row.run_id])


def test_a_dead_training_with_a_deleted_run_is_no_problem(here):
    write_training(end=None)
    deliver_all()
    connect().delete_run(list_runs()[0][0].run_id)
    assert reap() == []


def test_silent_run_is_listed_with_its_last_step(here, capsys):
    minutes = {"r": 12, "s": 1, "t": None}  # since the last heartbeat, if any
    folders = {key: write_training(key, key * 16, None, 30) for key in minutes}
    for key, ago in minutes.items():
        if ago is not None:
            beat = {"key": key, "pid": 1, "step": 27, "heartbeat": round(time.time() - 60 * ago, 3)}
            write_json(folders[key] / "run.json", add_checksum(beat))
    r, s, t = (file_lock(folder / "lock") for folder in folders.values())
    with r, s, t:
        rows, _ = list_runs()
        assert {row.fingerprint[0]: row.step for row in rows} == {"r": 27, "s": 27, "t": 20}
        _show_runs(rows)
    lines = {line.split()[0][-1]: line for line in capsys.readouterr().out.splitlines()[1:4]}
    assert "running, no sign for 12 min *" in lines["r"]
    assert "27 of 30" in lines["r"]
    assert all("running *" in lines[key] for key in "st")


@settings(max_examples=8)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6), st.integers(1, 4))
def test_newest_runs_are_the_first_of_all(here, places, newest):
    """Runs are in this folder, in MLflow or in both."""
    shutil.rmtree(TRAIN_RUNS, ignore_errors=True)
    empty_database(here / "mlflow.db")
    client = connect()
    experiment = ensure_experiment(client, "diffctl-digits")
    for age, (is_here, is_there) in enumerate(places):
        started = int(1000 * time.time()) - 60_000 * age
        if is_here:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "time_ns", lambda started=started: started * 1_000_000)
                Spool(TRAIN_RUNS / f"f{age}", f"key{age}", f"run{age}", "diffctl-digits").sync()
        if is_there:
            tags = {keys.KEY: f"key{age}", keys.BEST: f"best{age}"}
            client.create_run(experiment, start_time=started, tags=tags, run_name=f"run{age}")
    every, first = list_runs()[0], list_runs(newest=newest)[0]
    assert [row.name for row in every] == [f"run{age}" for age, place in enumerate(places) if any(place)]
    assert first == every[:newest]


def test_list_sync_and_reap_commands(invoke):
    write_training(end=None)
    listed = invoke("runs").out
    assert "dead *" in listed
    assert "diffctl sync" in listed
    synced = invoke("sync", "--json")
    assert json.loads(synced.out)[0]["points"] == 2
    assert synced.err == ""
    assert invoke("runs", "reap").out == "digits-f1f1f1f1: marked KILLED\n"
    assert "no dead training is RUNNING in MLflow" in invoke("runs", "reap").out
    (row,) = json.loads(invoke("runs", "--json").out)
    assert (row["state"], row["undelivered"]) == ("dead", False)
    write_training("another", "f2" * 8)
    listed = invoke("runs", "-n", "1").out.splitlines()
    assert listed[1].startswith("digits-f2f2f2f2")
    assert "--all" in listed[-1]
    assert len(json.loads(invoke("runs", "--all", "--json").out)) == 2


def test_list_without_mlflow(invoke, monkeypatch):
    write_training()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    listed = invoke("runs")
    assert "finished *" in listed.out
    assert_refused(listed, "runs/", code=75)


@pytest.mark.slow
@given(
    jumps=st.lists(st.integers(-10_000 * HOUR, 10_000 * HOUR), min_size=4, max_size=8),
    end=st.sampled_from([None, "FINISHED", "KILLED"]),
)
def test_clock_set_back_gives_no_negative_time(tmp_path, capsys, jumps, end):
    clock = iter(jumps)

    def now() -> int:
        return (1_800_000_000_000 + next(clock, jumps[-1])) * 1_000_000

    folder = TRAIN_RUNS / "c1" / f"{len(list(tmp_path.glob('runs/train/c1/*')))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", now)
        patch.setattr(time, "time", lambda: now() / 1e9)
        for _ in range(2):  # started, killed, resumed
            spool = Spool(folder, "key", "digits-c1", "diffctl-digits")
            spool.metrics(1, {"loss": 1.0})
            spool.metrics(2, {"loss": 0.5})
            RunDir(folder, "key").beat(2)
        if end:
            spool.close(end)
        times = [event.time for event in read_events(folder) if hasattr(event, "time")]
        assert times == sorted(times)
        found = read_status(folder)
        assert found.step == 2
        assert found.started <= found.updated
        _show_runs(list_runs(TRAIN_RUNS / "c1")[0])
    assert not re.search(r"-\d", capsys.readouterr().out)
