"""DIFFCTL_STATE_URL: a training that resumes on another machine is bitwise equal; no step waits or fails."""

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from moto.server import ThreadedMotoServer

from diffusion.images.store import ImageStore
from diffusion.system.errors import DiffctlWarning, TemporaryError, UsageError
from diffusion.train.checkpoint import state_mirror
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.checkpoint.state_files import step_of
from diffusion.train.checkpoint.state_mirror import VARIABLE, StateMirror
from diffusion.train.train_step import TrainState
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
def test_a_torn_upload_is_reported_and_the_state_before_it_is_used(store, tmp_path, url):
    train_in(store, tmp_path / "one", stop_at=6)
    train_in(store, tmp_path / "one", stop_at=9)
    before, newest = sorted(Path(url).glob("*/state-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(DiffctlWarning, match=rf"{newest.name} of {VARIABLE} is damaged"):
        _, _, begun = train_in(store, tmp_path / "two")
    assert begun == step_of(before)


@pytest.mark.parametrize("url", ["folder"], indirect=True)
def test_a_mirror_that_hangs_or_fails_delays_no_step(store, tmp_path, url, monkeypatch):
    over, plan = threading.Event(), plan_of(store, train=TRAIN)
    monkeypatch.setattr(state_mirror, "END_SECONDS", 0.1)
    monkeypatch.setattr(state_mirror, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(StateMirror, "_upload", lambda mirror, step: over.wait())
    _, state, _ = train_in(store, tmp_path / "hangs")
    assert state.step == plan.train.steps
    over.set()
    for thread in threading.enumerate():
        if thread.name == "mirror":
            thread.join()

    def fail(mirror: StateMirror, step: int) -> None:
        raise OSError("no route")

    monkeypatch.setattr(StateMirror, "_upload", fail)
    with pytest.warns(DiffctlWarning, match=rf"was not copied to {VARIABLE} \(OSError: no route\)") as caught:
        _, failed, _ = train_in(store, tmp_path / "fails")
    assert sum("was not copied" in str(one.message) for one in caught) == 1
    assert_same(failed, state)


def test_an_unreachable_mirror_stops_a_start_without_a_state_here(store, tmp_path, monkeypatch):
    train_in(store, tmp_path, stop_at=3)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setattr(StateMirror, "_files", lambda mirror: 1 / 0)
    with pytest.raises(TemporaryError, match=f"{VARIABLE} cannot be read"):
        train_in(store, tmp_path / "other")
    with pytest.warns(DiffctlWarning, match="resuming from the state here"):
        assert train_in(store, tmp_path, stop_at=4)[2] == 3
    monkeypatch.setenv(VARIABLE, "nosuch://place")
    with pytest.raises(UsageError, match=f"{VARIABLE}: .*nosuch"):
        train_in(store, tmp_path / "other")


@pytest.mark.slow
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
