"""DIFFCTL_STATE_URL: a training that resumes on another machine is bitwise equal; no step waits or fails."""

import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import torch
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem

from diffusion.images.store import ImageStore
from diffusion.system import signals
from diffusion.system.errors import DiffctlWarning, TemporaryError, UsageError
from diffusion.train.checkpoint import state_mirror
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.checkpoint.state_files import SavedState, StateValues, save_state, state_name
from diffusion.train.checkpoint.state_mirror import VARIABLE, StateMirror
from diffusion.train.train_state import TrainState
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import (
    DEADLINE,
    model_bytes,
    prepare,
    start,
    train_to_the_end,
    uninterrupted,
)
from tests.helpers.trainings import assert_same, plan_of, run_in
from tests.helpers.waiting import wait_until

TRAIN: dict[str, Any] = {"steps": 12, "save_every": 2, "ema_profiles": {"sigma_rel": [0.1], "every": 2}}


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of an empty mirror, which DIFFCTL_STATE_URL has: a folder, or a bucket in S3."""
    if request.param == "folder":
        monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
        yield str(tmp_path / "mirror")
        return
    from moto.server import ThreadedMotoServer  # takes long

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    requests.put(f"{endpoint}/bucket", timeout=60).raise_for_status()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(VARIABLE, "s3://bucket/states")
    yield "s3://bucket/states"
    server.stop()


def train_in(
    store: ImageStore, root: Path, stop_at: int | None = None, **options: bool
) -> tuple[RunDir, TrainState, int]:
    """Train as on a machine with this folder; return its run directory, the state, and the resumed step."""
    return run_in(store, plan_of(store, train=TRAIN), root, stop_at, **options)


@pytest.mark.slow
def test_another_machine_resumes_bitwise_with_all_snapshots(store, tmp_path, url):
    first, _, _ = train_in(store, tmp_path / "one", stop_at=7)
    folder, state, begun = train_in(store, tmp_path / "two")
    assert (begun, folder.fetched, folder.start) == (7, 7, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE)
        alone, whole, _ = train_in(store, tmp_path / "alone")
    assert_same(state, whole)
    for path in (alone.folder / "ema").iterdir():
        assert (folder.folder / "ema" / path.name).read_bytes() == path.read_bytes()
    _, _, again = train_in(store, tmp_path / "one")
    assert again == 12, "the mirror is further than the first machine"
    assert len(StateMirror(url, first.folder)._states()) <= 2
    assert train_in(store, tmp_path / "three", stop_at=1, fresh=True)[2] == 0


@pytest.mark.parametrize("url", ["folder"], indirect=True)
def test_a_mirror_that_fails_delays_no_step_and_the_missing_state_is_named(store, tmp_path, url, monkeypatch):
    def fail(mirror: StateMirror, step: int) -> None:
        raise OSError("no route")

    monkeypatch.setattr(state_mirror, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(StateMirror, "_upload", fail)
    with pytest.warns(DiffctlWarning, match=rf"was not copied to {VARIABLE} \(OSError: no route\)") as caught:
        _, state, _ = train_in(store, tmp_path)
    said = [str(one.message) for one in caught]
    assert [one.startswith("the state of step 12 is in ") for one in said] == [False, True]
    assert state.step == 12


def state_of(folder: Path, step: int) -> bytes:
    """Save a small state; return the file."""
    return save_state(folder, SavedState({"a": torch.zeros(200)}, StateValues(step=step))).read_bytes()


def test_damaged_copies_are_renamed_and_replaced_and_never_outlive_intact_ones(tmp_path: Path) -> None:
    here, url = tmp_path / "here", str(tmp_path / "mirror")
    copies = tmp_path / "mirror/here"
    copies.mkdir(parents=True)
    for step in (8, 9):
        content = bytearray(state_of(tmp_path / "other", step))
        content[-40] ^= 1  # of equal size
        (copies / state_name(step)).write_bytes(content)
    late = StateMirror(url, here)  # its first reading failed
    saved = {}
    for step in (1, 2, 3):
        saved[state_name(step)] = state_of(here, step)
        late._upload(step)
    assert {path.name for path in copies.glob("state-*")} == {state_name(step) for step in (2, 3, 8, 9)}
    mirror = StateMirror(url, tmp_path / "new/here")
    with pytest.warns(DiffctlWarning, match=rf"\.sealed of {VARIABLE} is damaged") as caught:
        assert mirror.fetch() == 3
    assert len(caught) == 2
    assert {path.name for path in copies.glob("damaged-*")} == {
        f"damaged-{state_name(step)}" for step in (8, 9)
    }
    damaged = copies / state_name(3)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    again = StateMirror(url, here)
    for step in (3, 4):
        saved[state_name(step)] = state_of(here, step)
        again._upload(step)
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == {
        state_name(step): saved[state_name(step)] for step in (3, 4)
    }
    with pytest.raises(UsageError, match=f"{VARIABLE} memory://x ends with this process: name a folder"):
        StateMirror("memory://x", here)


def test_an_intact_copy_of_a_state_that_is_damaged_here_is_fetched(tmp_path: Path) -> None:
    here, mirror = tmp_path / "here", StateMirror(str(tmp_path / "mirror"), tmp_path / "here")
    for step in (3, 4):
        saved = state_of(here, step)
        mirror._upload(step)
    newest = here / state_name(4)
    newest.write_bytes(saved[:-50])
    with pytest.warns(DiffctlWarning, match=r"000000004\.sealed is damaged .* using the state before it"):
        assert StateMirror(str(tmp_path / "mirror"), here).fetch() == 4
    assert newest.read_bytes() == saved
    assert StateMirror(str(tmp_path / "mirror"), here).fetch() == 0


class SlowFiles(LocalFileSystem):
    """A folder whose files call `on_write` before each block."""

    protocol = "slow"
    on_write: ClassVar[Callable[[], object]]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        write = file.write
        file.write = lambda block: (type(self).on_write(), write(block))
        return file


@pytest.mark.parametrize("event", ["slow", "hangs", "signal"])
def test_the_end_waits_while_the_last_copy_makes_progress(event, tmp_path, monkeypatch):
    """Each block takes 50 s of a clock that the test sets, after the end has noticed the block before."""
    register_implementation("slow", SlowFiles, clobber=True)
    clock, polled, gone = [0.0], threading.Semaphore(0), threading.Event()
    left = signals.patience_left

    def patience() -> float:
        polled.release()
        return left()

    def on_write() -> None:
        if gone.is_set():
            raise OSError("the test is over")
        assert not list((tmp_path / "mirror").rglob("state-*")), "a torn copy has its name"
        while polled.acquire(blocking=False):
            pass
        for _ in range(2):  # one may have looked before the last block was counted
            polled.acquire()
        clock[0] += {"slow": 50, "hangs": 61, "signal": 14}[event]
        if event != "slow":
            gone.wait()

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(state_mirror, "patience_left", patience)
    monkeypatch.setattr(state_mirror, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(state_mirror, "BLOCK", 256)
    monkeypatch.setattr(SlowFiles, "on_write", on_write, raising=False)
    monkeypatch.setenv(signals.PATIENCE, "18")  # of which 5 are kept
    mirror, waits = StateMirror(f"slow://{tmp_path}/mirror", tmp_path / "here"), []
    with warnings.catch_warnings(record=True) as caught, signals.stop_request() as stop:
        with mirror.in_background(waits.append):
            state_of(tmp_path / "here", 7)
            if event == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
        stop.clear()
        gone.set()
    assert waits == [f"copying the state of step 7 to {VARIABLE}"]
    whys = {"slow": [], "hangs": ["(no progress for 60 s)"], "signal": ["(the signal leaves no more time)"]}
    assert [str(one.message).partition(f"not at {VARIABLE} ")[2] for one in caught] == whys[event]
    assert clock[0] > 200 or event != "slow"


def test_an_unreachable_mirror_stops_a_start_without_a_state_here(store, tmp_path, monkeypatch):
    train_in(store, tmp_path, stop_at=3)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setattr(StateMirror, "_files", lambda mirror: 1 / 0)
    with pytest.raises(TemporaryError, match=f"{VARIABLE} cannot be read"):
        train_in(store, tmp_path / "other")
    with pytest.raises(TemporaryError, match=f"{VARIABLE} cannot be cleared"):
        train_in(store, tmp_path, fresh=True)
    with pytest.warns(DiffctlWarning, match="resuming from the state here"):
        assert train_in(store, tmp_path, stop_at=4)[2] == 3
    monkeypatch.setenv(VARIABLE, "nosuch://place")
    with pytest.raises(UsageError, match=f"{VARIABLE}: .*nosuch"):
        train_in(store, tmp_path / "other")


@pytest.mark.long
def test_a_killed_machine_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: SIGKILL, and the same project in another folder without its runs."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(tmp_path / "mlflow.db"))
    prepare(project, steps=400, log_every=1, save_every=5, preview_every=400)
    other = tmp_path / "other"
    shutil.copytree(project, other)
    wanted = uninterrupted(other)
    mirror = {VARIABLE: str(tmp_path / "mirror")}
    process = start(project, env=mirror)
    wait_until(lambda: len(list((tmp_path / "mirror").glob("*/state-*"))) == 2 or process.poll(), DEADLINE)
    process.kill()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    stderr = train_to_the_end(other, env=mirror).stderr
    assert f"came from {VARIABLE}" in stderr
    assert "resuming after step" in stderr
    assert model_bytes(other) == wanted
