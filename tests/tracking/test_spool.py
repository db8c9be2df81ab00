import errno
import json
import math
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.system.errors import DiffctlError, DiffctlWarning
from tests.helpers.damage import damages
from tracking.spool import EVENTS, Spool, flatten, read_events, read_lines


def open_spool(folder: Path) -> Spool:
    return Spool(folder, key="k1", name="digits-1", experiment="diffctl-digits")


def of_kind(folder: Path, kind: str) -> list[dict]:
    return [event for event in read_events(folder) if event["kind"] == kind]


def steps_of(folder: Path, metric: str) -> list[int]:
    return [event["step"] for event in of_kind(folder, "metrics") if metric in event["values"]]


def train(spool: Spool, start: int, stop: int) -> None:
    for step in range(start, stop):
        spool.metrics(step, {"loss": 1 / step})
        if step % 5 == 0:
            spool.metrics(step, {"memory": float(step)})
            spool.image(step, "preview", spool.folder / "previews" / f"{step}.png")


def test_every_event_has_its_original_step_and_time(tmp_path):
    spool = open_spool(tmp_path)
    spool.params({"train": {"lr": 0.1, "steps": 3}})
    spool.metrics(1, {"loss": 0.5})
    spool.close("FINISHED")
    kinds = [event["kind"] for event in read_events(tmp_path)]
    assert kinds == ["start", "params", "metrics", "status"]
    (metrics,) = of_kind(tmp_path, "metrics")
    assert metrics["step"] == 1
    assert metrics["values"] == {"loss": 0.5}
    assert metrics["time"] > 1_600_000_000_000
    assert of_kind(tmp_path, "params")[0]["values"] == {"train.lr": "0.1", "train.steps": "3"}


def test_a_replay_after_a_kill_writes_no_point_twice(tmp_path):
    train(open_spool(tmp_path), 1, 18)  # killed: never closed
    resumed = open_spool(tmp_path)
    train(resumed, 11, 31)
    resumed.close("FINISHED")
    assert steps_of(tmp_path, "loss") == list(range(1, 31))
    assert steps_of(tmp_path, "memory") == list(range(5, 31, 5))
    assert [event["step"] for event in of_kind(tmp_path, "image")] == list(range(5, 31, 5))
    assert len(of_kind(tmp_path, "start")) == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10_000))
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path_factory, torn):
    folder = tmp_path_factory.mktemp("spool")
    train(open_spool(folder), 1, 13)
    events = folder / EVENTS
    whole = events.read_bytes()
    start = whole.index(b"\n") + 1
    events.write_bytes(whole[: start + torn % (len(whole) - start)])
    resumed = open_spool(folder)
    train(resumed, 1, 13)
    resumed.close("FINISHED")
    assert all(event is not None for event, _ in read_lines(folder))
    assert steps_of(folder, "loss") == list(range(1, 13))
    assert [event["step"] for event in of_kind(folder, "image")] == [5, 10]


@settings(max_examples=150, deadline=None)
@given(damage=damages())
def test_whatever_happens_to_a_byte_no_line_says_something_else(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("spool")
    train(open_spool(folder), 1, 13)
    events = folder / EVENTS
    wanted = [json.dumps(event) for event in read_events(folder)]
    events.write_bytes(damage(events.read_bytes()))
    assert {json.dumps(event) for event in read_events(folder)} <= set(wanted)
    newest = max(steps_of(folder, "loss"), default=0)
    resumed = open_spool(folder)
    train(resumed, 1, 13)
    resumed.close("FINISHED")
    assert set(range(newest + 1, 13)) <= set(steps_of(folder, "loss")), (
        "what was lost at the end is written again"
    )


@pytest.mark.parametrize("length", [0, 5, 2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16])
def test_a_torn_line_of_any_length_is_dropped(tmp_path, length):
    train(open_spool(tmp_path), 1, 3)
    whole = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(whole + b"x" * length)
    open_spool(tmp_path)
    assert (tmp_path / EVENTS).read_bytes().startswith(whole + b'{"kind":"start"')


def test_params_tags_and_data_are_written_once(tmp_path):
    for loss_every in (1, 2):
        spool = open_spool(tmp_path)
        spool.params({"steps": 5, "log_every": loss_every})
        spool.tags({"commit": "abc", "try": loss_every})
        spool.dataset("digits", "d" * 64, ["zero", "one"])
        spool.close("KILLED")
    assert [event["values"] for event in of_kind(tmp_path, "params")] == [{"steps": "5", "log_every": "1"}]
    assert [event["values"] for event in of_kind(tmp_path, "tags")] == [
        {"commit": "abc", "try": "1"},
        {"try": "2"},
    ]
    assert len(of_kind(tmp_path, "dataset")) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK])
def test_an_artifact_is_kept_where_the_file_system_has_no_hard_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", no_link(number))
    test_an_artifact_is_kept_as_it_was(tmp_path)


def no_link(number: int):
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


def test_an_artifact_is_kept_as_it_was(tmp_path):
    model = tmp_path / "unet.safetensors"
    model.write_bytes(b"first")
    spool = open_spool(tmp_path / "run")
    spool.artifact(model, "weights")
    spool.artifact(model, "weights")
    replacement = tmp_path / "new"
    replacement.write_bytes(b"second")
    os.replace(replacement, model)
    spool.artifact(model, "weights")
    kept = [tmp_path / "run" / event["path"] for event in of_kind(tmp_path / "run", "artifact")]
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]
    assert {path.name for path in kept} == {"unet.safetensors"}


def test_values_that_are_no_numbers_survive(tmp_path):
    spool = open_spool(tmp_path)
    spool.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    spool.close("FAILED")
    values = of_kind(tmp_path, "metrics")[0]["values"]
    assert math.isnan(float(values["a"]))
    assert float(values["b"]) == math.inf
    assert float(values["c"]) == -math.inf
    json.loads((tmp_path / EVENTS).read_text().splitlines()[1], parse_constant=pytest.fail)


def test_flatten_joins_names_by_dots():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None, "f": True}) == {
        "a.b.c": "1",
        "d": "[1, 2]",
        "f": "True",
    }


def test_a_full_disk_loses_nothing_once_there_is_room(tmp_path, recwarn):
    """A limit on the file's size stands for the full disk: the kernel writes what fits, then fails."""
    spool = open_spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        train(spool, 1, 30)
        with pytest.raises(DiffctlError, match="make room"):
            open_spool(tmp_path).close("FAILED")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert recwarn.pop(DiffctlWarning)
    spool.close("FINISHED")
    assert all(event is not None for event, _ in read_lines(tmp_path))
    assert steps_of(tmp_path, "loss") == list(range(1, 30))


def test_the_spool_loads_no_mlflow():
    code = "import sys, tracking.spool, tracking.names; print(*({'mlflow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class Unwatched:
    """In place of a Watch: no clock to stop."""

    paused = nullcontext


def test_what_a_state_will_not_replay_is_on_the_disk_before_it(tmp_path, monkeypatch):
    from cli.stages.training import Tracked

    order: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    class Run:
        def save(self, state: object) -> None:
            order.append("state")

    spool = open_spool(tmp_path)
    spool.metrics(1, {"loss": 1.0})
    monkeypatch.setattr("os.fsync", noted)
    Tracked("train", Run(), Unwatched(), spool).save(None)
    assert order == [EVENTS, "state"]


def test_no_state_is_saved_while_points_have_no_room(tmp_path):
    from cli.stages.training import Tracked

    spool = open_spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.warns(DiffctlWarning, match="tried again"):
            train(spool, 1, 10)
        with pytest.raises(DiffctlError, match="make room and run it again"):
            Tracked("train", None, Unwatched(), spool).save(None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.close("FINISHED")
    assert steps_of(tmp_path, "loss") == list(range(1, 10))


def test_a_checkpoint_is_logged_once_and_its_end_too(tmp_path):
    for _ in range(2):
        spool = open_spool(tmp_path)
        spool.checkpoint(10, tmp_path / "10.safetensors", {"validation/kd": 1.0})
        spool.checkpoint(20, None, {"validation/kd": 2.0})
        spool.dropped(10)
        spool.close("FINISHED")
    assert steps_of(tmp_path, "validation/kd") == [10, 20]
    (checkpoint,) = of_kind(tmp_path, "checkpoint")
    (point, _) = of_kind(tmp_path, "metrics")
    assert (checkpoint["time"], checkpoint["path"]) == (point["time"], "10.safetensors")
    assert [event["step"] for event in of_kind(tmp_path, "dropped")] == [10]
