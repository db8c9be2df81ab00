"""`diffctl runs`, `deliver_all` and `runs reap`, and what scores become in MLflow."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cli.actions.tracked_runs import _show_runs
from diffusion.layout import RUN, SCORES, TRAIN_RUNS
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json, write_text
from diffusion.system.locks import file_lock
from diffusion.train.checkpoint.run_dir import RunDir
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database, free_port
from tests.helpers.scores_document import document, with_space
from tracking import keys
from tracking.experiments import ensure_experiment, search_runs
from tracking.runs.cell_runs import fetch_samples, log_samples
from tracking.runs.run_lookup import find_run
from tracking.runs.run_overview import list_runs, reap
from tracking.runs.scored_runs import fetch_model, fetch_scores, log_report, log_scores
from tracking.spool.sender import deliver_all
from tracking.spool.spool_events import read_events
from tracking.spool.spool_status import read_status
from tracking.spool.spool_writer import Spool
from tracking.store import connect

NOTE = "mlflow.note.content"
HOUR = 3_600_000  # milliseconds


@pytest.fixture(autouse=True)
def here(project):
    """A project with an empty MLflow store."""
    empty_database(project / "mlflow.db")
    return project


def train(
    key: str = "key", fingerprint: str = "f1" * 8, end: str | None = "FINISHED", steps: int = 20
) -> Path:
    """Write the spool of a training with its model; a killed one has no `end`."""
    folder = TRAIN_RUNS / fingerprint
    model = Path("models/model.safetensors")
    write_text(model, f"weights of {key}")  # writing in place would change the hard link
    spool = Spool(folder, key, f"digits-{fingerprint[:8]}", "diffctl-digits")
    spool.params({"train": {"steps": steps}})
    spool.tags({keys.FINGERPRINT: fingerprint})
    for step in (10, 20):
        spool.metrics(step, {"loss": 1 / step})
    if end:
        spool.artifact(model, keys.MODEL_FOLDER)
        spool.close(end)
    write_json(RUN, add_checksum({"key": key, "fingerprint": fingerprint}))
    return folder


def children(run_id: str) -> list:
    client = connect()
    experiment = ensure_experiment(client, "diffctl-digits")
    return search_runs(client, [experiment], f"tags.`{keys.PARENT}` = '{run_id}'")


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, metric)]


def test_scores_and_report_become_child_runs_curves_and_artifacts_of_the_training_once():
    train()
    run_id = log_scores(RUN, document())  # which delivers the spool first
    parent = connect().get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert history(run_id, "loss") == [(10, 0.1), (20, 0.05)]
    assert sorted(history(run_id, "kd_effnet_lite0_64/eta_0.0")) == [(5, 0.3), (10, 0.2)]
    assert sorted(history(run_id, "excess/eta_1.0")) == [(5, 475.0), (10, 375.0)]
    assert parent.data.tags[keys.BEST] == "kd_effnet_lite0_64 0.2 at steps10-eta0"
    cells = {run.data.tags[keys.CELL]: run for run in children(run_id)}
    assert set(cells) == set(document().cells)
    cell = cells["steps10-eta0"]
    assert (cell.info.status, cell.info.run_name) == ("FINISHED", "steps10-eta0")
    assert cell.data.metrics == document().cells["steps10-eta0"].scores
    assert cell.data.params.items() >= {"steps": "10", "reference_digest": "r" * 64}.items()
    assert fetch_scores(parent) == document()
    write_scores_document(SCORES, document())
    write_text(Path("report/index.html"), "<html>")
    assert log_report(RUN, Path("report")) == run_id
    assert [file.path for file in connect().list_artifacts(run_id, "report")] == ["report/index.html"]
    before = [run.to_dictionary() for run in children(run_id)]
    assert log_scores(RUN, document()) == run_id, "logging again changes nothing"
    assert [run.to_dictionary() for run in children(run_id)] == before
    assert len(history(run_id, "kd_effnet_lite0_64/eta_0.0")) == 2
    log_scores(RUN, document(num_images=1000))  # another protocol
    assert len(children(run_id)) == 8


def test_best_cell_becomes_metrics_and_pages_get_descriptions():
    train()
    run_id = log_scores(RUN, document())
    run = connect().get_run(run_id)
    best = {key: value for key, value in run.data.metrics.items() if key.startswith("best/")}
    scores = document().cells["steps10-eta0"].scores
    wanted = {name: value for name, value in scores.items() if "_std" not in name}
    wanted |= {"steps": 10.0, "eta": 0.0, "nfe": 10.0}
    assert best == {f"best/{name}": value for name, value in wanted.items()}
    assert history(run_id, "best/kd_effnet_lite0_64") == [(0, 0.2)]
    note = run.data.tags[NOTE]
    assert "| **10 steps, η = 0** | 200 | 175 | 0.2 |" in note
    experiment = connect().get_experiment(run.info.experiment_id)
    assert "*digits*" in experiment.tags[NOTE]
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best/kd_effnet_lite0_64"
    view = json.loads(experiment.tags["mlflow.sharedViewState.diffctl"])
    assert view["selectedColumns"][0] == "metrics.`best/kd_effnet_lite0_64`"
    connect().set_tag(run_id, NOTE, "the one with the odd threes")
    log_scores(RUN, document(num_images=1000))
    assert connect().get_run(run_id).data.tags[NOTE] == "the one with the odd threes", "a person wrote it"


def test_pictures_of_cells_are_logged_once():
    train()
    scores = document()
    run_id = log_scores(RUN, scores)
    pictures = {name: np.full((8, 8, 1), 10 * i, np.uint8) for i, name in enumerate(scores.cells)}
    log_samples(run_id, scores, pictures)
    log_samples(run_id, scores, dict.fromkeys(pictures, pictures["steps5-eta0"]))  # the first are kept
    client = connect()

    def logged(run: str) -> list[str]:
        return [file.path for file in client.list_artifacts(run, "images") if file.path.endswith(".png")]

    for cell in children(run_id):
        (path,) = logged(cell.info.run_id)
        with Image.open(client.download_artifacts(cell.info.run_id, path)) as picture:
            assert (np.asarray(picture) == pictures[cell.data.tags[keys.CELL]][..., 0]).all()
    shown = sorted(re.sub(r"\+timestamp.*", "", path) for path in logged(run_id))
    assert shown == [f"images/samples-eta_{eta}+step+{steps}" for eta in ("0.0", "1.0") for steps in (10, 5)]
    fetched = fetch_samples(client.get_run(run_id), scores)
    assert fetched.keys() == pictures.keys()
    assert all((picture == pictures[name]).all() for name, picture in fetched.items())
    other = document(num_images=1000)  # another protocol has other pictures
    assert fetch_samples(client.get_run(run_id), other) == {}
    log_scores(RUN, other)
    log_samples(run_id, other, pictures)
    assert len(logged(run_id)) == 8


def test_scores_need_mlflow_the_identity_of_the_model_and_a_model_file(monkeypatch):
    with pytest.raises(DiffctlError, match="dvc pull"):
        log_scores(RUN, document())
    train(end=None)
    deliver_all()
    with pytest.raises(DiffctlError, match="no model"):
        fetch_model("digits-f1f1f1f1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(DiffctlError, match="MLflow does not answer"):
        log_scores(RUN, document())


def test_model_without_a_run_gets_one_run():
    write_json(RUN, add_checksum({"key": "pulled", "fingerprint": "ab" * 8}))
    run_id = log_scores(RUN, document())
    assert log_scores(RUN, document()) == run_id
    run = find_run("digits-abababab")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")


def test_scores_of_every_feature_space_are_logged_with_its_extractor():
    train()
    both = with_space(document({(10, 0.0): 0.2}))
    run_id = log_scores(RUN, both)
    (child,) = children(run_id)
    metrics, params = child.data.metrics, child.data.params
    assert (metrics["excess"], metrics["excess_effnet_lite0_96"]) == (175.0, 350.0)
    assert (metrics["kd_effnet_lite0_64"], metrics["kd_effnet_lite0_96"]) == (0.2, 0.4)
    assert params["effnet-lite0-96.weights_sha256"] == "v" * 64
    assert history(run_id, "fd_effnet_lite0_96/eta_0.0") == [(10, 400.0)]
    other = with_space(document({(10, 0.0): 0.2}), weights_sha256="x" * 64)  # another protocol
    log_scores(RUN, other)
    assert len(children(run_id)) == 2
    assert fetch_scores(connect().get_run(run_id)) == other


def test_run_is_found_by_id_prefix_name_and_fingerprint():
    train("one", "f1" * 8)
    train("two", "f2" * 8)
    deliver_all()
    run_id = find_run("digits-f1f1f1f1").info.run_id
    for name in (run_id, run_id[:20], "f1" * 8):
        assert find_run(name).info.run_id == run_id
    with pytest.raises(UsageError, match="diffctl runs"):
        find_run("nothing")
    train("three", "f1" * 8 + "0")
    deliver_all()
    with pytest.raises(UsageError, match="several runs"):
        find_run("digits-f1f1f1f1")


def test_model_is_downloaded_once_and_verified(monkeypatch):
    train()
    deliver_all()
    path = fetch_model("digits-f1f1f1f1")
    assert path.read_bytes() == b"weights of key"
    assert path.parent.name == hashlib.sha256(b"weights of key").hexdigest()
    stored = Path(find_run("digits-f1f1f1f1").info.artifact_uri.removeprefix("file://"))
    (stored / keys.MODEL_FOLDER / "model.safetensors").write_bytes(b"something else")
    assert fetch_model("digits-f1f1f1f1") == path, "from the cache"
    path.write_bytes(b"damaged")
    with pytest.raises(DiffctlError, match="not the one that was logged"):
        fetch_model("digits-f1f1f1f1")


def test_overview_distinguishes_running_dead_and_finished_runs(here):
    for index, end in enumerate((None, "FINISHED", "FAILED", "KILLED")):
        train(f"key{index}", f"{index}" * 16, end)
    with file_lock(train("running", "r" * 16, None) / "lock"):
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
    train()
    deliver_all()
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(here, copy)
    monkeypatch.chdir(copy)
    assert [row.undelivered for row in list_runs()[0]] == [False]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('other')}/mlflow.db")
    assert [row.undelivered for row in list_runs()[0]] == [True]


def test_run_without_a_folder_is_listed_and_reaped_by_name(here):
    folder = train(end=None)
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


def test_silent_run_is_listed_with_its_last_step(here, capsys):
    minutes = {"r": 12, "s": 1, "t": None}  # since the last heartbeat, if any
    folders = {key: train(key, key * 16, None, 30) for key in minutes}
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
    train(end=None)
    listed = invoke("runs").out
    assert "dead *" in listed
    assert "diffctl sync" in listed
    synced = invoke("sync", "--json")
    assert json.loads(synced.out)[0]["points"] == 2
    assert synced.err == ""
    assert invoke("runs", "reap").out == "digits-f1f1f1f1: marked KILLED\n"
    (row,) = json.loads(invoke("runs", "--json").out)
    assert (row["state"], row["undelivered"]) == ("dead", False)
    train("another", "f2" * 8)
    listed = invoke("runs", "-n", "1").out.splitlines()
    assert listed[1].startswith("digits-f2f2f2f2")
    assert "--all" in listed[-1]
    assert len(json.loads(invoke("runs", "--all", "--json").out)) == 2


def test_list_and_sync_without_mlflow(invoke, monkeypatch):
    train()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    listed = invoke("runs")
    assert "finished *" in listed.out
    assert_refused(listed, "runs/", code=75)
    assert_refused(invoke("sync"), code=75)


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
        times = [event["time"] for event in read_events(folder) if "time" in event]
        assert times == sorted(times)
        found = read_status(folder)
        assert found.step == 2
        assert found.started <= found.updated
        _show_runs(list_runs(TRAIN_RUNS / "c1")[0])
    assert not re.search(r"-\d", capsys.readouterr().out)
