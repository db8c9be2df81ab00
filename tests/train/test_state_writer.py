"""States that are written beside the next steps: what is written, what fails, and who waits for whom."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diffusion.images.store import open_store
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.train.checkpoint import state_writer
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.checkpoint.state_files import SavedState, newest_state, state_files
from diffusion.train.checkpoint.state_values import StateValues
from diffusion.train.checkpoint.state_writer import StateWriter
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import NullObserver, new_state
from diffusion.train.loop import train as train_on
from tests.helpers.trainings import assert_same, plan_of
from tests.train.test_state_files import equal, state

CPU = torch.device("cpu")
SOON = 60.0  # seconds, of which none passes unless something hangs


class Disk:
    """A disk whose writes stand still until they are let go on, or fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.full = threading.Semaphore(0), threading.Event(), False
        self.writing = self.most = 0
        self._sync, self._lock = os.fsync, threading.Lock()
        patch.setattr(os, "fsync", self.fsync)

    def let_go_on_once_begun(self) -> None:
        """Let writes go on as soon as one stands still."""
        threading.Thread(target=lambda: self.begun.acquire(timeout=SOON) and self.go.set()).start()

    def fsync(self, handle: int) -> None:
        with self._lock:
            self.writing += 1
            self.most = max(self.most, self.writing)
        self.begun.release()
        try:
            assert self.go.wait(SOON)
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._sync(handle)
        finally:
            with self._lock:
                self.writing -= 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.go.set()


def saved_at(folder: Path) -> int | None:
    saved = newest_state(folder)
    return None if saved is None else saved.values.step


def test_what_is_written_is_the_state_as_it_was(tmp_path: Path, disk: Disk) -> None:
    writer, now = StateWriter(tmp_path), state(1)
    with writer.beside():
        writer.save(now)
        assert disk.begun.acquire(timeout=SOON)
        assert saved_at(tmp_path) is None, "it is not there yet, and nobody waits for it"
        for tensor in now.tensors.values():
            tensor.zero_()
        writer.check()
        disk.go.set()
    saved = newest_state(tmp_path)
    assert saved is not None
    assert equal(saved, state(1))


def test_layouts_and_gradients_are_copied_as_numbers() -> None:
    tensor = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    copy = state_writer.detached_copy(SavedState({"a": tensor}, StateValues())).tensors["a"]
    assert torch.equal(copy, tensor)
    assert copy.is_contiguous()
    assert not copy.requires_grad
    assert copy.data_ptr() != tensor.data_ptr()


def test_one_write_at_a_time_and_the_end_waits_for_the_last(tmp_path: Path, disk: Disk) -> None:
    writer = StateWriter(tmp_path)
    disk.let_go_on_once_begun()
    with writer.beside():
        for step in (1, 2, 3):
            writer.save(state(step))
    assert disk.most == 1
    assert saved_at(tmp_path) == 3
    assert len(state_files(tmp_path)) == 2


def found_by_check(writer: StateWriter) -> None:
    while True:
        writer.check()


@pytest.mark.parametrize(
    "next_call", [found_by_check, lambda writer: writer.save(state(3)), lambda writer: None]
)
def test_a_full_disk_is_told_by_whatever_comes_next(
    tmp_path: Path, disk: Disk, next_call: Callable[[StateWriter], None]
) -> None:
    writer = StateWriter(tmp_path)
    disk.go.set()
    writer.save(state(1))
    disk.full = True
    sentence = r"cannot save the training's state in .* \(No space left on device\): make room"

    def train() -> None:
        with writer.beside():
            writer.save(state(2))
            next_call(writer)

    with pytest.raises(DiffctlError, match=sentence):
        train()
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000001.sealed"]
    disk.full = False
    writer.save(state(2))
    assert saved_at(tmp_path) == 2


def test_a_signal_is_obeyed_when_the_state_is_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    writer = StateWriter(tmp_path)
    disk.let_go_on_once_begun()

    def train() -> None:
        with writer.beside():
            writer.save(state(1))
            raise Interrupted("stopped by SIGTERM", 15)

    with pytest.raises(Interrupted):
        train()
    assert saved_at(tmp_path) == 1


def test_without_room_for_a_copy_the_steps_wait(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(tensor.nbytes for tensor in state(1).tensors.values())
    disk.go.set()
    for room, copies in ((2 * size - 1, 0), (2 * size, 1)):
        made: list[SavedState] = []
        monkeypatch.setattr(state_writer, "room_beside", lambda room=room: room)
        monkeypatch.setattr(state_writer, "detached_copy", lambda now, made=made: made.append(now) or now)
        writer = StateWriter(tmp_path)
        with writer.beside():
            writer.save(state(1))
            assert copies or saved_at(tmp_path) == 1
        assert len(made) == copies


def test_a_training_goes_on_beside_its_saves_and_is_the_same(
    digits_store: Path, tmp_path: Path, disk: Disk
) -> None:
    """The steps after a save are made while it stands still; the state is that of the step it is of."""
    store = open_store(digits_store)
    plan = plan_of(store, train={"steps": 6, "save_every": 3})
    whole = new_state(plan, CPU)
    train_on(whole, store, ProcessGroup(CPU), NullObserver(), lambda state: None, lambda: None)
    disk.go.set()
    with open_run(tmp_path, "a") as run:
        disk.go.clear()
        first = new_state(plan, CPU)

        def check() -> None:
            run.writer.check()
            if first.step == 5:
                assert not state_files(run.folder)
                disk.go.set()

        with run.writer.beside():
            train_on(first, store, ProcessGroup(CPU), NullObserver(), run.save, check)
        newest, oldest = new_state(plan, CPU), state_files(run.folder)[0]
        assert run.restore(newest)
        assert_same(newest, whole)
        state_files(run.folder)[1].unlink()
        half = new_state(plan, CPU)
        assert run.restore(half)
        assert (half.step, oldest.exists()) == (3, True)
        train_on(half, store, ProcessGroup(CPU), NullObserver(), lambda state: None, lambda: None)
    assert_same(half, whole)
