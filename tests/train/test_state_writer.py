"""States that are written during the next steps: their content, errors, and who waits for whom."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint import state_files
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.checkpoint.state_files import SavedState, StateWriter, newest_state
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.train_step import new_state
from tests.helpers.trainings import CPU, Recorder, assert_same, plan_of, restore, run
from tests.train.test_state_files import equal, state

SOON = 60.0  # seconds, which pass only if something hangs


class Disk:
    """A disk whose writes block until `go` is set, or fail if it is `full`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.full = threading.Semaphore(0), threading.Event(), False
        patch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        self.begun.release()
        assert self.go.wait(SOON)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.go.set()


def saved_at(folder: Path) -> int | None:
    saved = newest_state(folder)
    return None if saved is None else saved.values.step


def test_the_written_state_is_the_one_at_the_save(tmp_path, disk):
    writer, now = StateWriter(tmp_path), state(1)
    with writer.in_background():
        writer.save(now)
        assert disk.begun.acquire(timeout=SOON)
        assert saved_at(tmp_path) is None, "save() does not wait for the write"
        for tensor in now.tensors.values():
            tensor.zero_()
        writer.check()
        disk.go.set()
    assert equal(newest_state(tmp_path), state(1))


def check_until_it_raises(writer: StateWriter) -> None:
    while True:
        writer.check()


@pytest.mark.parametrize(
    "next_call", [check_until_it_raises, lambda writer: writer.save(state(3)), lambda writer: None]
)
def test_a_full_disk_is_reported_by_the_next_call(
    tmp_path: Path, disk: Disk, next_call: Callable[[StateWriter], None]
) -> None:
    writer = StateWriter(tmp_path)
    disk.go.set()
    writer.save(state(1))
    disk.full = True

    def save() -> None:
        with writer.in_background():
            writer.save(state(2))
            next_call(writer)

    with pytest.raises(DiffctlError, match=r"\(No space left on device\): make room"):
        save()
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000001.sealed"]
    disk.full = False
    writer.save(state(2))
    assert saved_at(tmp_path) == 2


def test_without_memory_for_a_copy_save_waits_for_the_write(tmp_path, disk, monkeypatch):
    size = sum(tensor.nbytes for tensor in state(1).tensors.values())
    disk.go.set()
    for room, copies in ((2 * size - 1, 0), (2 * size, 1)):
        made: list[SavedState] = []
        monkeypatch.setattr(state_files, "available_memory", lambda room=room: room)
        monkeypatch.setattr(state_files, "detached_copy", lambda now, made=made: made.append(now) or now)
        writer = StateWriter(tmp_path)
        with writer.in_background():
            writer.save(state(1))
            assert copies or saved_at(tmp_path) == 1
        assert len(made) == copies


def test_training_continues_during_a_save_and_is_bitwise_equal(store, tmp_path, disk):
    """The steps after a save run while its write is blocked."""
    plan = plan_of(store, train={"steps": 6, "save_every": 3})
    whole, first, restored = (new_state(plan, CPU) for _ in range(3))
    run(whole, store)
    disk.go.set()
    with open_run(tmp_path, "a") as folder:
        disk.go.clear()

        def check() -> None:
            folder.writer.check()
            if first.step == 5:
                assert not state_files.state_files(folder.folder)
                disk.go.set()

        with folder.writer.in_background():
            train(first, store, ProcessGroup(CPU), Recorder(folder.writer.save), check)
        assert len(state_files.state_files(folder.folder)) == 2
        restore(folder, restored)
    assert_same(restored, whole)
