"""Delivery of a spool to a real MLflow store: every entry once, whatever fails in between."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracking import MlflowClient
from PIL import Image

from diffusion.system.locks import file_lock
from diffusion.train.checkpoint.run_dir import open_run
from tests.helpers.disks import make_room
from tests.helpers.mlflow_server import empty_database
from tests.helpers.spools import logged, open_spool, stored, the_run, write_points
from tracking import keys
from tracking.connectivity import MlflowError
from tracking.mlflow_pages import NOTE, note_tags
from tracking.spool import sender
from tracking.spool.delivery import MAX_TRIES, REJECTED, RunDeleted, deliver, mark_killed
from tracking.spool.event_log import EVENTS, end_discarded, read_events
from tracking.spool.spool_status import DeliveryState
from tracking.store import ARTIFACTS, connect, database_file


def test_everything_arrives_once_with_its_step_and_time(folder, uri, tmp_path):
    picture = folder / "previews" / "10.png"
    picture.parent.mkdir(parents=True)
    Image.new("L", (16, 8), 128).save(picture)
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    spool = open_spool(folder)
    write_points(spool, 1, 701)  # more than one request
    spool.image(10, "preview/ema", picture)
    spool.artifact(model, keys.MODEL_FOLDER)
    spool.close("FINISHED")
    result = deliver(folder, uri)
    assert (result.points, result.rejected) == (1400, 0)
    (folder / "sent.json").unlink()  # a sender that was killed before it saved its progress
    deliver(folder, uri)
    assert stored(uri) == logged(folder)
    run, client, events = the_run(uri), connect(uri), list(read_events(folder))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits-abcd")
    assert (run.info.start_time, run.info.end_time) == (events[0].time, events[-1].time)
    assert run.info.start_time > 1_600_000_000_000
    assert run.data.params == {"train.steps": "30", "train.lr": "0.1"}
    assert run.data.tags[keys.FINGERPRINT] == "abcd"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    pictures = client.list_artifacts(run.info.run_id, "images")
    assert len(pictures) == 2, "one, and its thumbnail, in the folder that MLflow's page of images reads"
    assert all(Path(file.path).name.startswith("preview~ema+step+10+") for file in pictures)
    assert run.data.tags[keys.FILE_SHA256] == hashlib.sha256(b"weights").hexdigest()
    (weights,) = client.list_artifacts(run.info.run_id, keys.MODEL_FOLDER)
    assert Path(client.download_artifacts(run.info.run_id, weights.path)).read_bytes() == b"weights"


def test_non_finite_points_are_delivered_once(folder, uri):
    values = {"loss": math.nan, "peak": math.inf, "low": -math.inf}
    open_spool(folder).metrics(20, values)
    for _ in range(2):
        deliver(folder, uri)
        (folder / "sent.json").unlink()  # a sender that was killed before it saved its progress
    for name, value in values.items():
        (point,) = connect(uri).get_metric_history(the_run(uri).info.run_id, name)
        assert math.isnan(point.value) if math.isnan(value) else value * point.value > 1e300


def test_bad_entries_are_rejected_and_block_nothing(folder, uri):
    spool = open_spool(folder)
    write_points(spool, 1, 50)
    spool.metrics(50, {"loss=bad": 1.0, "loss": 0.5})
    spool.params({"ok": 1, "bad=name" + "x" * 300: 2})
    spool.image(50, "preview", folder / "missing.png")
    model = folder / "changed.safetensors"
    model.write_bytes(b"weights")
    spool.artifact(model, keys.MODEL_FOLDER)
    with open(model, "r+b") as file:  # in place, through the hard link
        file.write(b"W")
    with open(folder / EVENTS, "ab") as file:
        file.write(b"\x00\x00\x00damaged\n")
    write_points(spool, 51, 60)
    spool.close("FINISHED")
    for file in ("missing.png", "changed"):
        for _ in range(MAX_TRIES - 1):  # a missing file may exist at the next try
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
    assert keys.FILE_SHA256 not in the_run(uri).data.tags, "no model was stored"


def test_long_class_list_and_refused_data_set_block_nothing(folder, uri):
    spool = open_spool(folder)
    spool.dataset("many", "e" * 64, [f"class{number:04}" for number in range(9000)])
    spool.dataset("n" * 501, "f" * 64)  # longer than MLflow's limit
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    assert deliver(folder, uri).rejected == 1
    assert stored(uri) == logged(folder)
    (refused,) = map(json.loads, (folder / REJECTED).read_text().splitlines())
    assert refused["entry"]["digest"] == "f" * 64
    used = {one.dataset.name: one.dataset.source for one in the_run(uri).inputs.dataset_inputs}
    assert json.loads(used["many"])["tags"] == {"digest": "e" * 64, "classes": 9000}
    assert json.loads(used["digits"])["tags"]["classes"] == ["0", "1"]


def fail(*_, **__) -> None:
    raise MlflowException("pool timeout", BAD_REQUEST)


@pytest.mark.parametrize("method", ["log_inputs", "log_batch", "set_terminated"])
def test_passing_sql_error_loses_nothing(folder, uri, monkeypatch, method):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, fail)
        for _ in range(MAX_TRIES - 1):
            with pytest.raises(MlflowError, match="pool timeout"):
                deliver(folder, uri)
    assert deliver(folder, uri).rejected == 0
    assert stored(uri) == logged(folder)
    run = the_run(uri)
    assert (run.info.status, len(run.data.params), len(run.inputs.dataset_inputs)) == ("FINISHED", 2, 1)


def test_lasting_sql_error_blocks_nothing(folder, uri, monkeypatch):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    monkeypatch.setattr(MlflowClient, "log_inputs", fail)
    for _ in range(MAX_TRIES - 1):
        with pytest.raises(MlflowError, match=r"dataset .*pool timeout"):
            deliver(folder, uri)
    assert deliver(folder, uri).rejected == 1
    assert (stored(uri), the_run(uri).info.status) == (logged(folder), "FINISHED")


def test_damaged_start_is_replaced_by_a_later_start(folder, uri):
    write_points(open_spool(folder), 1, 10)
    damaged = (folder / EVENTS).read_bytes().replace(b'"kind":"start"', b'"kind":"stArt"', 1)
    (folder / EVENTS).write_bytes(damaged)
    with pytest.raises(MlflowError, match="damaged"):
        deliver(folder, uri)
    write_points(open_spool(folder), 11, 20)  # the training resumes
    assert deliver(folder, uri).rejected == 1
    assert stored(uri) == logged(folder)


@pytest.mark.parametrize("text", ["", "[]", "5", '{"offset": 7}', "[" * 100_000])
def test_damaged_progress_file_delivers_all_again(folder, uri, text):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    deliver(folder, uri)
    before = the_run(uri).to_dictionary()["info"]
    (folder / "sent.json").write_text(text)
    assert not DeliveryState.load(folder, uri).complete
    deliver(folder, uri)
    assert (stored(uri), the_run(uri).to_dictionary()["info"]) == (logged(folder), before)
    (folder / "sent.json").write_text((folder / "sent.json").read_text().replace('"tries": 0', '"tries": 2'))
    assert DeliveryState.load(folder, uri).tries == 0


def test_power_cut_takes_back_nothing_that_was_delivered(folder, uri, monkeypatch):
    spool, durable = open_spool(folder), 0

    def fsync(handle: int) -> None:
        nonlocal durable
        if os.readlink(f"/proc/self/fd/{handle}") == str(folder / EVENTS):
            durable = os.fstat(handle).st_size
            write_points(spool, 10, 20)  # by the training, meanwhile

    write_points(spool, 1, 10)
    monkeypatch.setattr(os, "fsync", fsync)
    deliver(folder, uri)
    monkeypatch.undo()
    os.truncate(folder / EVENTS, durable)
    resumed = open_spool(folder)
    write_points(resumed, 5, 30)
    resumed.close("FINISHED")
    deliver(folder, uri)
    assert stored(uri) == logged(folder)


def test_progress_beyond_the_spool_delivers_all_again(folder, uri):
    write_points(open_spool(folder), 1, 10)
    deliver(folder, uri)
    with open(folder / EVENTS, "rb+") as file:  # a disk that loses what was synced
        os.truncate(file.fileno(), len(file.readline()))
    resumed = open_spool(folder)
    resumed.metrics(1, {"other": 1.0})
    deliver(folder, uri)
    write_points(resumed, 1, 10)
    resumed.close("FINISHED")
    deliver(folder, uri)
    assert not logged(folder) - stored(uri)
    assert the_run(uri).info.status == "FINISHED"


def test_full_artifact_disk_rejects_nothing(folder, uri, mount, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(bytes(50_000))
    spool = open_spool(folder)
    spool.artifact(model, keys.MODEL_FOLDER)
    spool.close("FINISHED")
    disk = mount(database_file(uri).parent / ARTIFACTS, "32k")
    for _ in range(MAX_TRIES + 1):
        with pytest.raises(MlflowError, match="make room"):
            deliver(folder, uri)
    make_room(disk)
    assert deliver(folder, uri).rejected == 0
    assert the_run(uri).info.status == "FINISHED"
    assert keys.FILE_SHA256 in the_run(uri).data.tags


def test_files_wait_for_an_artifact_store_that_is_away_and_block_nothing(folder, uri, monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise ConnectionError("the bucket does not answer")

    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    spool = open_spool(folder)
    spool.artifact(model, keys.MODEL_FOLDER)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        for _ in range(MAX_TRIES + 1):
            with pytest.raises(MlflowError, match=r"cannot store now: 1, the bucket does not answer"):
                deliver(folder, uri)
            assert not DeliveryState.load(folder, uri).complete
    assert (stored(uri), the_run(uri).info.status) == (logged(folder), "FINISHED")
    assert deliver(folder, uri).rejected == 0
    assert DeliveryState.load(folder, uri).complete
    assert keys.FILE_SHA256 in the_run(uri).data.tags


@pytest.mark.parametrize("error", [json.JSONDecodeError("a page of HTML", "<", 0), OSError("timed out")])
def test_a_postponed_file_that_is_gone_is_rejected_and_hides_no_other(
    folder, uri, monkeypatch, tmp_path, error
):
    def refuse(*_: object) -> None:
        raise error

    spool = open_spool(folder)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        spool.artifact(tmp_path / name, "files")
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        with pytest.raises(MlflowError, match="cannot store now: 2"):
            deliver(folder, uri)
    (gone,) = folder.glob("outbox/*/a")
    gone.unlink()
    for _ in range(MAX_TRIES - 1):
        with pytest.raises(MlflowError, match="outbox"):
            deliver(folder, uri)
    assert deliver(folder, uri).rejected == 1
    run_id = the_run(uri).info.run_id
    assert [file.path for file in connect(uri).list_artifacts(run_id, "files")] == ["files/b"]
    assert DeliveryState.load(folder, uri).complete


def test_a_second_delivery_keeps_the_description(folder, uri):
    spool = open_spool(folder)
    spool.tags(note_tags("a training"))
    spool.close("FINISHED")
    deliver(folder, uri)
    connect(uri).set_tag(the_run(uri).info.run_id, NOTE, "my best one")
    (folder / "sent.json").unlink()
    deliver(folder, uri)
    assert the_run(uri).data.tags[NOTE] == "my best one"


def test_a_later_description_replaces_the_earlier_one(folder, uri):
    spool = open_spool(folder)
    for text in ("a training", "a longer training"):
        spool.tags(note_tags(text))
        deliver(folder, uri)
        assert the_run(uri).data.tags[NOTE] == text


def test_a_second_delivery_keeps_the_scores_in_the_description(folder, uri):
    spool = open_spool(folder)
    spool.tags(note_tags("a training"))
    deliver(folder, uri)
    for name, value in note_tags("a training; scores: 3").items():
        connect(uri).set_tag(the_run(uri).info.run_id, name, value)
    (folder / "sent.json").unlink()
    deliver(folder, uri)
    assert the_run(uri).data.tags[NOTE] == "a training; scores: 3"


def test_resumed_training_continues_its_run(folder, uri):
    write_points(open_spool(folder), 1, 10)
    deliver(folder, uri)
    with file_lock(folder / "lock"):
        assert not mark_killed(folder, uri), "its process is alive"
    assert [mark_killed(folder, uri) for _ in range(2)] == [True, False]
    run = the_run(uri)
    assert (run.info.status, run.info.end_time) == ("KILLED", list(read_events(folder))[-1].time)
    spool = open_spool(folder)
    write_points(spool, 5, 15)
    deliver(folder, uri)
    assert (the_run(uri).info.status, the_run(uri).info.run_id) == ("RUNNING", run.info.run_id)
    assert stored(uri) == logged(folder)
    spool.close("FAILED")
    deliver(folder, uri)
    assert the_run(uri).info.status == "FAILED"


def test_fresh_training_in_the_same_folder_is_delivered_in_full(folder, uri):
    """Ignore the progress that a sender of the earlier training saves too late."""
    with open_run(folder.parent, folder.name):
        write_points(open_spool(folder, "old"), 1, 30)
    deliver(folder, uri)
    late = DeliveryState.load(folder, uri)
    with open_run(folder.parent, folder.name, fresh=True):
        write_points(open_spool(folder, "new"), 1, 50)
    late.save()
    deliver(folder, uri)
    assert stored(uri, "new") == logged(folder)
    assert len(stored(uri, "old")) == 58


def test_undelivered_log_of_a_discarded_training_is_delivered(folder, uri):
    picture = folder / "previews" / "10.png"
    with open_run(folder.parent, folder.name):
        picture.parent.mkdir()
        Image.new("L", (16, 8), 128).save(picture)
        old = open_spool(folder, "old")
        write_points(old, 1, 30)
        old.image(10, "preview", picture)
        before = logged(folder)
    with open_run(folder.parent, folder.name, fresh=True):
        write_points(open_spool(folder, "new"), 1, 50)
        assert not picture.exists()
        end_discarded(folder)
    assert [(one.done, one.rejected) for one in sender.deliver_all()] == [(True, 0)] * 2
    assert (stored(uri, "old"), stored(uri, "new")) == (before, logged(folder))
    assert (the_run(uri, "old").info.status, the_run(uri, "new").info.status) == ("KILLED", "RUNNING")


@pytest.mark.parametrize(("delivered", "folders"), [(True, 0), (False, 1)])
def test_only_a_log_that_is_not_delivered_is_kept(folder, uri, delivered, folders):
    with open_run(folder.parent, folder.name) as run:
        (folder / "checkpoints").mkdir()
        spool = open_spool(folder, run.key)
        write_points(spool, 1, 30)
        spool.close("FINISHED")
    if delivered:
        deliver(folder, uri)
    with open_run(folder.parent, folder.name, fresh=True):
        assert not (folder / EVENTS).exists()
    assert len(list(folder.parent.glob(f"{folder.name}-*/checkpoints"))) == folders


def test_lost_store_and_another_store_get_everything(folder, uri, tmp_path):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    other = empty_database(tmp_path / "other.db")
    deliver(folder, uri)
    deliver(folder, other)
    assert stored(other) == stored(uri) == logged(folder)
    empty_database(tmp_path / "mlflow.db")
    deliver(folder, uri)
    assert stored(uri) == logged(folder)


def delete_during_training(folder, uri):
    """Deliver points to a run, delete it, and log more; return its id."""
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    deliver(folder, uri)
    the_id = the_run(uri).info.run_id
    connect(uri).delete_run(the_id)
    write_points(spool, 10, 20)
    return the_id


def test_deleted_run_stays_deleted_until_it_is_restored(folder, uri):
    the_id = delete_during_training(folder, uri)
    with pytest.raises(RunDeleted, match=f"mlflow runs restore --run-id {the_id}"):
        deliver(folder, uri)
    assert not (folder / REJECTED).exists()
    assert DeliveryState.load(folder, uri).complete
    (synced,) = sender.deliver_all()
    assert synced.done
    connect(uri).restore_run(DeliveryState.load(folder, uri).run_id)
    assert sender.deliver_all()[0].points == 20
    assert stored(uri) == logged(folder)


def test_a_sender_delivers_to_a_run_that_was_restored(folder, uri, monkeypatch):
    the_id = delete_during_training(folder, uri)
    with pytest.raises(RunDeleted):
        deliver(folder, uri)
    connect(uri).restore_run(the_id)
    monkeypatch.setattr(sender, "EXIT_SECONDS", 0.01)
    read_end, write_end = os.pipe()
    os.close(write_end)
    assert sender.run(folder, uri, read_end)
    os.close(read_end)
    assert stored(uri) == logged(folder)


@pytest.mark.parametrize("method", ["log_batch", "set_terminated"])
def test_run_deleted_during_the_delivery_loses_nothing(folder, uri, monkeypatch, method):
    spool = open_spool(folder)
    write_points(spool, 1, 10)
    spool.close("FINISHED")
    send = getattr(MlflowClient, method)

    def delete_first(client: MlflowClient, run_id: str, *args, **options) -> None:
        client.delete_run(run_id)
        send(client, run_id, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, delete_first)
        with pytest.raises(RunDeleted):
            deliver(folder, uri)
    connect(uri).restore_run(DeliveryState.load(folder, uri).run_id)
    assert deliver(folder, uri).rejected == 0
    assert (stored(uri), the_run(uri).info.status) == (logged(folder), "FINISHED")
