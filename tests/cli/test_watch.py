"""Observers of a training: they change no result, and their failures do not stop it."""

import errno
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli.stages.observers import TrackedTraining, Validation
from cli.stages.preview import write_preview
from diffusion.evaluate.training_scores import ScoredCheckpoints
from diffusion.model.unet import UNet
from diffusion.system.errors import DiffctlError, DiffctlWarning, Interrupted
from diffusion.system.files import write_json
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.plan import DenoiserPlan
from diffusion.train.train_state import TrainState
from tests.helpers.trainings import CPU, Recorder, assert_same, plan_of, run, run_until
from tracking.spool.event_log import Spool

DROPOUT = {"model": {"dropout": 0.3}, "train": {"lr": 0.01}}


def preview(path: Path, state: TrainState) -> np.ndarray:
    write_preview(path, state.plan, state.network.eval(), state.ema)
    return np.asarray(Image.open(path))


@pytest.mark.slow
def test_preview_depends_on_the_weights_alone_and_changes_nothing(store, tmp_path: Path) -> None:
    watched, alone = (new_state(plan_of(store, **DROPOUT), CPU) for _ in range(2))
    for state in (watched, alone):
        run_until(state, store, 5)
    first = preview(tmp_path / "first.png", watched)
    torch.manual_seed(1)
    preview(tmp_path / "second.png", watched)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    write_preview(tmp_path / "real.png", watched.plan, watched.network, watched.ema, store)
    with_real = np.asarray(Image.open(tmp_path / "real.png"))
    assert len(with_real) > len(first)
    assert np.array_equal(with_real[: len(first) - 1], first[:-1])
    row = 64  # pixels: 8 of a digit, eight times as large
    assert not np.array_equal(first[:row], first[-row:]), "raw weights above, their EMA below"
    watched.network.train()
    assert_same(watched, alone)
    for state in (watched, alone):
        run_until(state, store, 6)
    assert_same(watched, alone)


@pytest.mark.slow
def test_full_disk_for_previews_does_not_stop_training(store, tmp_path, monkeypatch) -> None:
    fsync = os.fsync

    def full(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if "/previews" in name or "run.json" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    watched, alone = (new_state(plan_of(store), CPU) for _ in range(2))
    with open_run(tmp_path / "runs", "f") as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", DiffctlWarning)  # as a command shows them
        watch = TrackedTraining(folder, watched.plan, Spool(folder.folder, "k", "n", "e"), lambda *_: None)
        monkeypatch.setattr(os, "fsync", full)
        train(watched, store, ProcessGroup(CPU), watch, lambda: None)
        monkeypatch.undo()
        assert not list((folder.folder / "previews").iterdir())
        assert len(list(folder.folder.glob("state-*.sealed"))) == 2
    room = "(No space left on device): the training continues without"
    previews = [f"no preview of step {step} {room}" for step in (6, 12)]
    assert messages_of(caught) == [f"no heartbeat {room}", *previews]
    run(alone, store)
    assert_same(watched, alone)


def messages_of(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if warning.category is DiffctlWarning]


def raising(error: Exception | Interrupted) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def failing(plan: DenoiserPlan, saved: list[int]) -> Any:
    """An observer with methods that fail, except `save`; the preview fails during sampling."""

    def preview(step: int, network: UNet, ema: UNet) -> None:
        with pytest.MonkeyPatch.context() as patch:
            full = raising(torch.OutOfMemoryError("CUDA out of memory."))
            patch.setattr("cli.stages.preview.generate", full)
            write_preview(Path("/nonexistent/never.png"), plan, network, ema)

    return SimpleNamespace(
        save=lambda one: saved.append(one.values.step),
        metrics=raising(ValueError("nan")),
        progress=raising(UnicodeEncodeError("ascii", "·", 0, 1, "no such letter")),
        preview=preview,
        validate=raising(DiffctlError("the test split is gone")),
        evaluate=raising(DiffctlError("the reference is stale")),
    )


@pytest.mark.slow
def test_failing_observer_does_not_stop_training(store) -> None:
    """Also with dropout, which a preview disables while it samples."""
    saved: list[int] = []
    changes = {**DROPOUT, "train": {"steps": 4, "log_every": 2, "preview_every": 2, "eval_every": 3}}
    watched, alone = (new_state(plan_of(store, **changes), CPU) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", DiffctlWarning)
        run(watched, store, observer=failing(watched.plan, saved))
    assert saved == [4]
    without = "the training continues without"
    assert [line for line in messages_of(caught) if not line.startswith("no live line")] == [
        f"no metrics of step 2 (ValueError: nan): {without}",
        f"no preview of step 2 (OutOfMemoryError: CUDA out of memory.): {without}",
        f"no score of step 3 (the reference is stale): {without}",
        f"no metrics of step 4 (ValueError: nan): {without}",
        f"no validation loss of step 4 (the test split is gone): {without}",
        f"no preview of step 4 (OutOfMemoryError: CUDA out of memory.): {without}",
        f"no score of step 4 (the reference is stale): {without}",
    ]
    assert len(messages_of(caught)) == 8, "the live line once, of four steps"
    run(alone, store)
    assert_same(watched, alone)


@pytest.mark.parametrize("stop", [Interrupted("stopped", signal.SIGTERM), RankFailed("another has ended")])
def test_stop_in_an_observer_saves(store, stop: DiffctlError) -> None:
    saved: list[int] = []
    observer: Any = Recorder(lambda one: saved.append(one.values.step))
    observer.preview = raising(stop)
    state = new_state(plan_of(store, train={"steps": 4, "preview_every": 2}), CPU)
    with pytest.raises(type(stop)):
        run(state, store, observer=observer)
    assert saved == [2]


def test_failing_score_on_resume_does_not_stop_training(store, tmp_path: Path) -> None:
    scorer: Any = SimpleNamespace(scores=raising(RuntimeError("no room on the device")))
    validation = Validation(None, scorer, SimpleNamespace(scores=dict), None)
    state = new_state(plan_of(store, train={"eval_every": 2}), CPU)
    watch = TrackedTraining(SimpleNamespace(folder=tmp_path), state.plan, None, lambda *_: None, validation)
    with pytest.warns(DiffctlWarning, match=r"no score of step 4 \(RuntimeError: no room"):
        watch.catch_up(4, state.ema)


def test_resume_under_another_protocol_of_scores_is_printed_with_its_fields(store, tmp_path, capsys) -> None:
    write_json(tmp_path / "scores.json", {"card": {"num_images": 20, "seed": 0}, "steps": {}})
    state = new_state(plan_of(store, train={"eval_every": 2}), CPU)
    folder: Any = SimpleNamespace(folder=tmp_path, fetched=None, start=None, changes=lambda: "")
    for step, count in ((0, 40), (3, 20), (3, 40)):
        checkpoints = ScoredCheckpoints(tmp_path, "best", "kd", {"num_images": count, "seed": 0})
        validation = Validation(None, None, checkpoints, None)
        state.step = step
        TrackedTraining(folder, state.plan, None, lambda *_: None, validation).announce(state, state.ema)
    lines = [line for line in capsys.readouterr().err.splitlines() if "validation/" in line]
    assert len(lines) == 1, "not at the start, nor under the same protocol"
    assert lines[0].endswith("validation/… are of another protocol from step 3 on: fields num_images")


def test_image_rate_excludes_previews_saves_and_scores(store, tmp_path, monkeypatch) -> None:
    """A step takes 2 s, a preview 100, a save 200, a score 400."""
    now, logged = [1000.0], []
    take = now.append
    monkeypatch.setattr("cli.stages.observers.time", SimpleNamespace(monotonic=lambda: sum(now)))
    monkeypatch.setattr("cli.stages.observers.write_preview", lambda *_: take(100))
    writer = SimpleNamespace(save=lambda state: take(200))
    folder = SimpleNamespace(folder=tmp_path, beat=lambda step: None, writer=writer)
    scorer: Any = SimpleNamespace(scores=lambda *_: {"kd": take(400)})
    checkpoints: Any = SimpleNamespace(save=lambda *_: (None, []), record=lambda *_: None)
    validation = Validation(None, scorer, checkpoints, None)
    spool: Any = SimpleNamespace(
        metrics=lambda step, values: logged.append(values),
        **dict.fromkeys(("image", "sync", "checkpoint"), lambda *_: None),
    )
    changes = {"batch_size": 8, "steps": 12, "log_every": 1, "preview_every": 3, "save_every": 2}
    state = new_state(plan_of(store, train={**changes, "eval_every": 5}), CPU)
    watch = TrackedTraining(folder, state.plan, spool, lambda *_: None, validation)
    train(state, store, ProcessGroup(CPU), watch, lambda: take(2))
    assert len(logged) == 12
    assert [values["images_per_second"] for values in logged[1:]] == [4.0] * 11
