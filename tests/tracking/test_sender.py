import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracking import MlflowClient
from PIL import Image

from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.locks import file_lock, is_held
from diffusion.train.run_folder import open_run
from tests.helpers.disks import make_room, memory_disk
from tests.helpers.mlflow_server import MlflowServer, empty_database, free_port
from tracking import names, sender
from tracking.delivery import REJECTED, UPLOAD_TRIES, RunDeleted, Sent, deliver, mark_killed
from tracking.reach import MlflowAway, MlflowError
from tracking.spool import EVENTS, OUTBOX, Spool, read_events
from tracking.store import ARTIFACTS, connect, database_file, ensure_experiment, find_by_tags, tracking_uri

EXPERIMENT = "diffctl-digits"


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    empty_database(tmp_path / "mlflow.db")
    return tracking_uri(tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # so long does it take to notice one that hangs
    running = MlflowServer(tmp_path)
    yield running
    running.kill()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "train" / "abcd"


def open_spool(folder: Path, key: str = "key") -> Spool:
    spool = Spool(folder, key=key, name="digits-abcd", experiment=EXPERIMENT)
    spool.params({"train": {"steps": 30, "lr": 0.1}})
    spool.tags({names.FINGERPRINT: folder.name})
    spool.dataset("digits", "d" * 64, ["0", "1"])
    return spool


def write_points(spool: Spool, start: int, stop: int) -> None:
    for step in range(start, stop):
        spool.metrics(step, {"loss": 1 / step, "grad/norm": float(step)})


def logged(folder: Path) -> Counter:
    """(key, step, time, value) of every point in the spool."""
    events = [event for event in read_events(folder) if event["kind"] == "metrics"]
    return Counter((k, e["step"], e["time"], v) for e in events for k, v in e["values"].items())


def stored(uri: str, key: str = "key") -> Counter:
    """The same of every point in MLflow."""
    client = connect(uri)
    run = the_run(uri, key)
    points = [
        point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)
    ]
    return Counter((point.key, point.step, point.timestamp, point.value) for point in points)


def the_run(uri: str, key: str = "key"):
    client = connect(uri)
    (run,) = find_by_tags(client, [ensure_experiment(client, EXPERIMENT)], {names.KEY: key})
    return run


def eventually(condition, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return value


def test_everything_arrives_once_with_its_step_and_time(folder, uri, tmp_path):
    picture = folder / "previews" / "10.png"
    picture.parent.mkdir(parents=True)
    Image.new("L", (16, 8), 128).save(picture)
    model = tmp_path / "unet.safetensors"
    model.write_bytes(b"weights")
    spool = open_spool(folder)
    write_points(spool, 1, 701)  # more than one request
    spool.image(10, "preview/ema", picture)
    spool.artifact(model, names.MODEL_FOLDER)
    spool.close("FINISHED")
    result = deliver(folder, uri)
    assert (result.points, result.rejected) == (1400, 0)
    assert stored(uri) == logged(folder)
    run, client = the_run(uri), connect(uri)
    events = list(read_events(folder))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits-abcd"
    assert (run.info.start_time, run.info.end_time) == (events[0]["time"], events[-1]["time"])
    assert run.data.params == {"train.steps": "30", "train.lr": "0.1"}
    assert run.data.tags[names.FINGERPRINT] == "abcd"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    pictures = client.list_artifacts(run.info.run_id, "images")
    assert pictures, "where MLflow's page looks for a run's pictures"
    assert all(Path(file.path).name.startswith("preview~ema+step+10+") for file in pictures)
    assert run.data.tags[names.FILE_SHA256] == hashlib.sha256(b"weights").hexdigest()
    (weights,) = client.list_artifacts(run.info.run_id, names.MODEL_FOLDER)
    assert Path(client.download_artifacts(run.info.run_id, weights.path)).read_bytes() == b"weights"


def test_sending_all_again_changes_nothing(folder, uri):
    spool = open_spool(folder)
    write_points(spool, 1, 20)
    spool.metrics(20, {"loss": float("nan"), "peak": float("inf")})
    spool.close("FINISHED")
    deliver(folder, uri)
    client, run = connect(uri), the_run(uri)
    before = client.get_metric_history(run.info.run_id, "loss")
    (folder / "sent.json").unlink()  # a sender that was killed before it could note anything
    deliver(folder, uri)
    assert the_run(uri).to_dictionary()["info"] == run.to_dictionary()["info"]
    assert len(client.get_metric_history(run.info.run_id, "loss")) == len(before) == 20
    assert len(client.get_metric_history(run.info.run_id, "peak")) == 1


def test_a_dataset_that_another_training_names_at_the_same_moment_is_told_again(folder, uri, monkeypatch):
    real, tries = MlflowClient.log_inputs, []

    def between(*arguments):
        tries.append(arguments)
        if len(tries) == 1:  # as a database says it, whose row another request has just made
            raise MlflowException("duplicate key value violates unique constraint", BAD_REQUEST)
        real(*arguments)

    monkeypatch.setattr(MlflowClient, "log_inputs", between)
    open_spool(folder).close("FINISHED")
    assert deliver(folder, uri).rejected == 0
    assert len(tries) == 2
    assert len(the_run(uri).inputs.dataset_inputs) == 1


def test_a_bad_entry_is_set_aside_and_holds_up_no_other(folder, uri):
    spool = open_spool(folder)
    write_points(spool, 1, 50)
    spool.metrics(50, {"loss=bad": 1.0, "loss": 0.5})
    spool.params({"ok": 1, "bad=name" + "x" * 300: 2})
    spool.image(50, "preview", folder / "missing.png")
    spool.artifact(Path(__file__), names.MODEL_FOLDER)
    shutil.rmtree(folder / OUTBOX)
    with open(folder / EVENTS, "ab") as file:
        file.write(b"\x00\x00\x00damaged\n")
    write_points(spool, 51, 60)
    spool.close("FINISHED")
    for file in ("missing.png", Path(__file__).name):
        for _ in range(2):  # a file that is missing may be there at the next try
            with pytest.raises(MlflowError, match=file):
                deliver(folder, uri)
    deliver(folder, uri)
    assert the_run(uri).info.status == "FINISHED"
    assert the_run(uri).data.params["ok"] == "1"
    assert Counter({key: n for key, n in logged(folder).items() if "=" not in key[0]}) == stored(uri)
    rejected = [json.loads(line) for line in (folder / REJECTED).read_text().splitlines()]
    assert len(rejected) == 5
    assert rejected[0]["entry"]["key"] == "loss=bad"
    assert all(entry["reason"] for entry in rejected)
    assert names.FILE_SHA256 not in the_run(uri).data.tags, "there is no model to be had"


def test_a_start_that_is_damaged_holds_up_nothing_that_another_start_names(folder, uri):
    write_points(open_spool(folder), 1, 10)
    damaged = (folder / EVENTS).read_bytes().replace(b'"kind":"start"', b'"kind":"stArt"', 1)
    (folder / EVENTS).write_bytes(damaged)
    with pytest.raises(MlflowError, match="is damaged: no line in it says whose metrics they are"):
        deliver(folder, uri)
    write_points(open_spool(folder), 11, 20)  # a training that goes on
    assert deliver(folder, uri).rejected == 1
    assert stored(uri) == logged(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", '{"offset": 7}', "[" * 100_000])
def test_a_damaged_note_of_what_was_sent_sends_it_again(folder, uri, text):
    write_points(open_spool(folder), 1, 10)
    deliver(folder, uri)
    (folder / "sent.json").write_text(text)
    assert not Sent.load(folder, uri).complete
    deliver(folder, uri)
    assert stored(uri) == logged(folder)
    (folder / "sent.json").write_text((folder / "sent.json").read_text().replace('"tries": 0', '"tries": 2'))
    assert Sent.load(folder, uri).tries == 0


def test_an_artifact_that_changed_since_is_not_sent(folder, uri):
    spool = open_spool(folder)
    model = folder / "m.safetensors"
    model.write_bytes(b"weights")
    spool.artifact(model, names.MODEL_FOLDER)
    with open(model, "r+b") as file:  # in place: what is kept is another name of the same file
        file.write(b"W")
    spool.close("FINISHED")
    for _ in range(2):
        with pytest.raises(MlflowError, match="changed since it was logged"):
            deliver(folder, uri)
    assert deliver(folder, uri).rejected == 1
    assert names.FILE_SHA256 not in the_run(uri).data.tags


def test_a_full_disk_of_artifacts_sets_nothing_aside(folder, uri, mount, tmp_path):
    model = tmp_path / "unet.safetensors"
    model.write_bytes(bytes(50_000))
    spool = open_spool(folder)
    spool.artifact(model, names.MODEL_FOLDER)
    spool.close("FINISHED")
    disk = mount(database_file(uri).parent / ARTIFACTS, *memory_disk("32k"))
    for _ in range(UPLOAD_TRIES + 1):
        with pytest.raises(MlflowError, match=r"No space left on device.*: make room$"):
            deliver(folder, uri)
    make_room(disk)
    assert deliver(folder, uri).rejected == 0
    assert the_run(uri).info.status == "FINISHED"
    assert names.FILE_SHA256 in the_run(uri).data.tags


def test_a_torn_line_waits_for_its_end(folder, uri):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    whole = (folder / EVENTS).read_bytes()
    (folder / EVENTS).write_bytes(whole[:-10])
    deliver(folder, uri)
    assert Sent.load(folder, uri).complete
    assert len(stored(uri)) == 16
    (folder / EVENTS).write_bytes(whole)
    deliver(folder, uri)
    assert stored(uri) == logged(folder)


def test_a_resumed_training_goes_on_in_its_run(folder, uri):
    write_points(open_spool(folder), 1, 10)
    deliver(folder, uri)
    with file_lock(folder / "lock"):
        assert not mark_killed(folder, uri), "its process lives"
    assert mark_killed(folder, uri)
    assert not mark_killed(folder, uri), "once is enough"
    run = the_run(uri)
    assert run.info.status == "KILLED"
    assert run.info.end_time == list(read_events(folder))[-1]["time"]
    spool = open_spool(folder)
    write_points(spool, 5, 15)
    deliver(folder, uri)
    assert the_run(uri).info.status == "RUNNING"
    assert the_run(uri).info.run_id == run.info.run_id
    assert stored(uri) == logged(folder)
    spool.close("FAILED")
    deliver(folder, uri)
    assert the_run(uri).info.status == "FAILED"


def test_a_training_begun_afresh_is_delivered_whole(folder, uri):
    """Whatever a sender that was at work then notes of the one before."""
    with open_run(folder.parent, folder.name):
        write_points(open_spool(folder, "old"), 1, 30)
    deliver(folder, uri)
    noted = Sent.load(folder, uri)
    with open_run(folder.parent, folder.name, fresh=True):
        write_points(open_spool(folder, "new"), 1, 50)
    noted.save()
    deliver(folder, uri)
    assert stored(uri, "new") == logged(folder)
    assert len(stored(uri, "old")) == 58


def test_a_training_begun_afresh_gets_no_second_sender_at_once(folder, uri):
    with file_lock(folder / sender.LOCK), open_run(folder.parent, folder.name, fresh=True):
        assert is_held(folder / sender.LOCK)


def test_a_lost_store_is_filled_again(folder, uri, tmp_path):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    deliver(folder, uri)
    empty_database(tmp_path / "mlflow.db")
    deliver(folder, uri)
    assert stored(uri) == logged(folder)


def test_another_store_gets_everything(folder, uri, tmp_path):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    other = empty_database(tmp_path / "other.db")
    deliver(folder, uri)
    deliver(folder, other)
    assert stored(other) == stored(uri) == logged(folder)


def test_a_deleted_run_stays_deleted(folder, uri):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    deliver(folder, uri)
    connect(uri).delete_run(the_run(uri).info.run_id)
    write_points(spool, 10, 20)
    with pytest.raises(RunDeleted):
        deliver(folder, uri)
    assert not (folder / REJECTED).exists()
    assert Sent.load(folder, uri).complete, "nothing is left to do"
    (synced,) = sender.sync(uri, folder.parent)
    assert synced.done
    assert "was deleted" in synced.message
    connect(uri).restore_run(Sent.load(folder, uri).run_id)
    assert sender.sync(uri, folder.parent)[0].points == 20
    assert stored(uri) == logged(folder)


@pytest.mark.slow
def test_points_against_a_dead_port_arrive_at_a_live_one(folder, server, monkeypatch):
    """The training's whole life without a server, then `sync`: fast enough to run always."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(sender, "LINGER_SECONDS", 1)
    spool = open_spool(folder)
    handle = sender.start(folder)
    write_points(spool, 1, 200)
    spool.close("FINISHED")
    started = time.monotonic()
    assert not handle.close(timeout=0.5), "nobody is there to take it"
    assert time.monotonic() - started < 5
    handle.process.kill()
    handle.process.wait()
    with pytest.raises(MlflowAway, match=server.uri):
        sender.sync(root=folder.parent)
    server.start()
    (done,) = sender.sync(root=folder.parent)
    assert done.done, done.message
    assert stored(server.uri) == logged(folder)
    assert the_run(server.uri).info.status == "FINISHED"
    assert [again.points for again in sender.sync(root=folder.parent)] == [0]


def test_a_store_that_cannot_be_meant_is_refused_at_the_start(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    open_spool(folder)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI"):
        sender.start(folder)


def test_no_room_for_a_sender_stops_no_training(folder):
    with pytest.warns(DiffctlWarning, match="diffctl sync"):
        handle = sender.start(folder)  # the folder is not there: its log cannot be opened
    assert not handle.close(timeout=1)


TRAINER = """
import sys, time
from pathlib import Path
from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.locks import file_lock
from tracking import sender
from tracking.spool import Spool
folder = Path(sys.argv[1])
with file_lock(folder / "lock"):
    spool = Spool(folder, key="key", name="digits-abcd", experiment="diffctl-digits")
    handle = sender.start(folder)
    print(handle.process.pid, flush=True)
    step = 0
    while True:
        step += 1
        spool.metrics(step, {"loss": 1 / step})
        time.sleep(0.02)
"""


def start_trainer(folder: Path) -> tuple[subprocess.Popen, int]:
    folder.mkdir(parents=True, exist_ok=True)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    return trainer, int(trainer.stdout.readline())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


@pytest.mark.slow
def test_the_sender_of_a_killed_training_ends_and_says_so(folder, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    trainer, pid = start_trainer(folder)
    eventually(lambda: Sent.load(folder, uri).offset > 500)
    trainer.kill()
    trainer.wait()
    eventually(lambda: gone(pid))
    assert stored(uri) == logged(folder)
    assert the_run(uri).info.status == "KILLED"


@pytest.mark.slow
def test_a_killed_sender_loses_and_doubles_nothing(folder, server, monkeypatch):
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    trainer, pid = start_trainer(folder)
    for _ in range(4):
        sent = Sent.load(folder, server.uri).offset
        eventually(lambda sent=sent: Sent.load(folder, server.uri).offset > sent)
        os.kill(pid, signal.SIGKILL)
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "tracking.sender", str(folder)]
        again = subprocess.Popen(command, stdin=read_end)
        os.close(read_end)
        pid = again.pid
    trainer.kill()
    trainer.wait()
    os.close(write_end)
    eventually(lambda: gone(pid))
    assert stored(server.uri) == logged(folder)


@pytest.mark.slow
def test_outages_in_the_middle_lose_and_double_nothing(folder, server, monkeypatch):
    """Dead at the start, killed in the middle, then hung; the training writes all the while."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    trainer, pid = start_trainer(folder)
    eventually(lambda: "MLflow does not answer at" in (folder / sender.LOG).read_text())

    def progress() -> None:
        sent = Sent.load(folder, server.uri).offset
        eventually(lambda: Sent.load(folder, server.uri).offset > sent)

    server.start()
    progress()
    server.kill()
    warnings = (folder / sender.LOG).read_text().count("MLflow does not answer at")
    eventually(lambda: (folder / sender.LOG).read_text().count("MLflow does not answer at") > warnings)
    server.start()
    progress()
    server.signal(signal.SIGSTOP)
    warnings = (folder / sender.LOG).read_text().count("MLflow does not answer at")
    eventually(lambda: (folder / sender.LOG).read_text().count("MLflow does not answer at") > warnings)
    server.signal(signal.SIGCONT)
    progress()
    trainer.kill()
    trainer.wait()
    eventually(lambda: gone(pid))
    assert stored(server.uri) == logged(folder)
    assert the_run(server.uri).info.status == "KILLED"


@pytest.mark.slow
def test_a_server_that_hangs_when_the_run_is_made_gives_one_run(folder, server, monkeypatch):
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    ensure_experiment(connect(server.uri), EXPERIMENT)
    server.signal(signal.SIGSTOP)
    trainer, pid = start_trainer(folder)
    eventually(lambda: (folder / sender.LOG).read_text().count("MLflow does not answer at") >= 2)
    server.signal(signal.SIGCONT)
    eventually(lambda: Sent.load(folder, server.uri).offset > 0)
    trainer.kill()
    trainer.wait()
    eventually(lambda: gone(pid))
    assert stored(server.uri) == logged(folder)


def test_the_sender_does_not_outlive_its_bound(folder, monkeypatch):
    dead = f"http://127.0.0.1:{free_port()}"
    write_points(open_spool(folder), 1, 10)
    read_end, write_end = os.pipe()
    os.close(write_end)
    monkeypatch.setattr(sender, "CLOSING_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not sender.run(folder, dead, read_end, linger=0.3)
    os.close(read_end)
