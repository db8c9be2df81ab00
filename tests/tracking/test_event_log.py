"""The spool on disk: every event once, whatever tears, damages or fills up in between."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.stages.observers import TrackedTraining
from diffusion.system.errors import DiffctlError, DiffctlWarning
from tests.helpers.damaged_bytes import damages
from tracking.spool.event_log import EVENTS, Spool, read_events, read_lines


def open_spool(folder: Path) -> Spool:
    return Spool(folder, key="k1", name="digits-1", experiment="diffctl-digits")


def of_kind(folder: Path, kind: str) -> list[Any]:
    return [event for event in read_events(folder) if event.kind == kind]


def steps_of(folder: Path, metric: str) -> list[int]:
    return [event.step for event in of_kind(folder, "metrics") if metric in event.values]


def train(spool: Spool, start: int, stop: int) -> None:
    for step in range(start, stop):
        spool.metrics(step, {"loss": 1 / step})
        if step % 5 == 0:
            spool.metrics(step, {"memory": float(step)})
            spool.image(step, "preview", spool.folder / "previews" / f"{step}.png")


def test_replay_after_kill_writes_no_point_twice(tmp_path):
    train(open_spool(tmp_path), 1, 18)  # killed: never closed
    resumed = open_spool(tmp_path)
    train(resumed, 11, 31)
    resumed.close("FINISHED")
    assert steps_of(tmp_path, "loss") == list(range(1, 31))
    assert steps_of(tmp_path, "memory") == list(range(5, 31, 5))
    assert [event.step for event in of_kind(tmp_path, "image")] == list(range(5, 31, 5))
    assert len(of_kind(tmp_path, "start")) == 2


def test_a_resume_adds_the_points_between_the_earlier_ones(tmp_path):
    spool = open_spool(tmp_path)
    for step in (10, 20, 30):
        spool.metrics(step, {"loss": 1.0})
    spool.metrics(30, {"validation/kd": 2.0})  # killed before its checkpoint
    resumed = open_spool(tmp_path)
    for step in (5, 10, 15, 30):
        resumed.metrics(step, {"loss": 3.0})
    resumed.checkpoint(30, tmp_path / "30.safetensors", {"validation/kd": 2.0})
    assert steps_of(tmp_path, "loss") == [10, 20, 30, 5, 15]
    (checkpoint,), times = of_kind(tmp_path, "checkpoint"), [one.time for one in of_kind(tmp_path, "metrics")]
    assert checkpoint.time == times[3], "the same point for MLflow"


@given(st.integers(1, 10_000))
def test_torn_last_line_is_dropped_and_written_again(tmp_path_factory, torn):
    folder = tmp_path_factory.mktemp("spool")
    train(open_spool(folder), 1, 13)
    events = folder / EVENTS
    content = events.read_bytes()
    start = content.index(b"\n") + 1
    events.write_bytes(content[: start + torn % (len(content) - start)])
    resumed = open_spool(folder)
    train(resumed, 1, 13)
    resumed.close("FINISHED")
    assert all(event is not None for event, _ in read_lines(folder))
    assert steps_of(folder, "loss") == list(range(1, 13))
    assert [event.step for event in of_kind(folder, "image")] == [5, 10]


@given(damage=damages())
def test_damaged_bytes_never_change_an_event(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("spool")
    train(open_spool(folder), 1, 13)
    events = folder / EVENTS
    written = {event.model_dump_json() for event in read_events(folder)}
    events.write_bytes(damage(events.read_bytes()))
    assert {event.model_dump_json() for event in read_events(folder)} <= written
    newest = max(steps_of(folder, "loss"), default=0)
    resumed = open_spool(folder)
    train(resumed, 1, 13)
    resumed.close("FINISHED")
    assert set(range(newest + 1, 13)) <= set(steps_of(folder, "loss"))


def test_params_tags_data_and_checkpoints_are_written_once(tmp_path):
    for loss_every in (1, 2):
        spool = open_spool(tmp_path)
        spool.params({"steps": 5, "log_every": loss_every})
        spool.tags({"commit": "abc", "try": loss_every})
        spool.dataset("digits", "d" * 64, ["zero", "one"])
        spool.checkpoint(10, tmp_path / "10.safetensors", {"validation/kd": 1.0})
        spool.checkpoint(20, None, {"validation/kd": 2.0})
        spool.dropped(10)
        spool.close("KILLED")
    assert [event.values for event in of_kind(tmp_path, "params")] == [{"steps": "5", "log_every": "1"}]
    tags = [event.values for event in of_kind(tmp_path, "tags")]
    assert tags == [{"commit": "abc", "try": "1"}, {"try": "2"}]
    assert len(of_kind(tmp_path, "dataset")) == 1
    assert steps_of(tmp_path, "validation/kd") == [10, 20]
    (checkpoint,), (point, _) = of_kind(tmp_path, "checkpoint"), of_kind(tmp_path, "metrics")
    assert (checkpoint.time, checkpoint.path) == (point.time, "10.safetensors")
    assert [event.step for event in of_kind(tmp_path, "dropped")] == [10]


@pytest.mark.parametrize("how", ["hard link", "copy"])
def test_artifact_keeps_the_logged_content(tmp_path, monkeypatch, how):
    if how == "copy":
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError))
    model, replacement = tmp_path / "model.safetensors", tmp_path / "new"
    model.write_bytes(b"first")
    spool = open_spool(tmp_path / "run")
    spool.artifact(model, "weights")
    spool.artifact(model, "weights")
    replacement.write_bytes(b"second")
    os.replace(replacement, model)
    spool.artifact(model, "weights")
    kept = [tmp_path / "run" / event.path for event in of_kind(tmp_path / "run", "artifact")]
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]
    assert {path.name for path in kept} == {"model.safetensors"}


def test_spool_imports_neither_mlflow_nor_torch():
    code = "import sys, tracking.spool.event_log; print(*({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"


def test_full_disk_refuses_states_and_loses_nothing_once_there_is_room(tmp_path):
    spool = open_spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # the kernel writes what fits, then fails
    try:
        with pytest.warns(DiffctlWarning):
            train(spool, 1, 30)
        with pytest.raises(DiffctlError), pytest.warns(DiffctlWarning):
            open_spool(tmp_path).close("FAILED")
        with pytest.raises(DiffctlError):
            TrackedTraining(None, None, spool, None).save(None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.close("FINISHED")
    assert all(event is not None for event, _ in read_lines(tmp_path))
    assert steps_of(tmp_path, "loss") == list(range(1, 30))


def test_event_that_the_kernel_takes_in_pieces_is_whole(tmp_path, monkeypatch):
    spool, write = open_spool(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:40]))
    train(spool, 1, 5)
    assert all(event is not None for event, _ in read_lines(tmp_path))
    assert steps_of(tmp_path, "loss") == [1, 2, 3, 4]


def test_spool_is_fsynced_before_the_state_is_saved(tmp_path, monkeypatch):
    order: list[str] = []
    run = Mock(**{"writer.save": lambda state: order.append("state")})
    spool = open_spool(tmp_path)
    spool.metrics(1, {"loss": 1.0})
    monkeypatch.setattr("os.fsync", lambda file: order.append(os.readlink(f"/proc/self/fd/{file}")))
    TrackedTraining(run, None, spool, None).save(None)
    assert order == [str(tmp_path / EVENTS), "state"]
