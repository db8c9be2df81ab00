"""State files: two are kept, and damage is reported; states are also written during the next steps."""

import errno
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from diffusion.system import checksums
from diffusion.system.checksums import write_checksummed
from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError
from diffusion.train.checkpoint import state_files
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.checkpoint.state_files import (
    DTYPES,
    SavedState,
    StateValues,
    StateWriter,
    newest_state,
    newest_step,
    save_state,
    write_tensors,
)
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.trainings import CPU, Recorder, assert_same, plan_of, restore, run

CURVE = [{"step": 1.0, "loss": 1 / 3}]
SOON = 60.0  # seconds, which pass only if something hangs


def state(step: int) -> SavedState:
    values = StateValues(step=step, skipped=1, window={"loss": 0.1, "count": 1.0}, history=CURVE)
    return SavedState({"a": torch.full((100,), float(step)), "b": torch.tensor([True, False])}, values)


def save_at(folder: Path, step: int) -> Path:
    return save_state(folder, state(step))


def equal(one: SavedState | None, other: SavedState) -> bool:
    assert one is not None
    same = one.values == other.values and one.tensors.keys() == other.tensors.keys()
    return same and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_two_newest_states_and_foreign_files_are_kept(tmp_path):
    assert newest_state(tmp_path) is None
    foreign = ["notes.txt", "state-.sealed", "state-000000009.json", "state-x.sealed"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 10, 9, 11):
        assert save_at(tmp_path, step).exists(), "the state just written is kept, also after a higher step"
    kept = {path.name for path in tmp_path.iterdir()} - {*foreign}
    assert kept == {"state-000000010.sealed", "state-000000011.sealed"}
    assert equal(newest_state(tmp_path), state(11))


@given(damage=damages(), block=st.sampled_from([7, 2**20]))
def test_after_any_damage_the_state_before_is_used(tmp_path: Path, damage: Damage, block: int) -> None:
    save_at(tmp_path, 1)
    path = save_at(tmp_path, 2)
    whole = path.read_bytes()
    changed = damage(whole)
    path.write_bytes(changed)
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(checksums, "BLOCK", block)
        saved = newest_state(tmp_path)
    assert equal(saved, state(2 if changed == whole else 1))
    assert changed == whole or f"{path} is damaged" in str(caught[0].message)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        save({"a": torch.ones(1)}),
        *(
            save({"values": torch.frombuffer(bytearray(text), dtype=torch.uint8)})
            for text in (b"[]", b"[" * 100_000, b'{"step": -1}')
        ),
    ],
    ids=lambda content: repr(content[:8]),
)
def test_invalid_content_is_damage_even_with_a_valid_checksum(tmp_path, content):
    save_at(tmp_path, 1)
    write_checksummed(tmp_path / "state-000000002.sealed", lambda file: file.write(content))
    with pytest.warns(DiffctlWarning, match=r"state-000000002.sealed is damaged"):
        assert equal(newest_state(tmp_path), state(1))


def test_a_state_that_the_system_does_not_read_is_kept(tmp_path, monkeypatch):
    path = save_at(tmp_path, 1)

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(state_files, "open_checksummed", refuse)
        with pytest.raises(TemporaryError, match=r"state-000000001\.sealed cannot be read"):
            newest_state(tmp_path)
    assert [*tmp_path.iterdir()] == [path]
    assert equal(newest_state(tmp_path), state(1))


def test_a_renamed_state_is_damaged(tmp_path):
    """By its checksum, which covers the name; and by its counter, if the checksum is valid."""
    path = save_at(tmp_path, 120)
    path.rename(tmp_path / "state-000000020.sealed")
    with pytest.warns(DiffctlWarning, match="checksum"):
        assert newest_state(tmp_path) is None
    content = save_at(tmp_path, 120).read_bytes()[:-32]
    write_checksummed(tmp_path / "state-000000500.sealed", lambda file: file.write(content))
    with pytest.warns(DiffctlWarning, match="it is of step 120"):
        assert equal(newest_state(tmp_path), state(120))


def test_if_all_states_are_damaged_they_are_quarantined_until_the_next_save(tmp_path):
    for step in (20, 30):
        path = save_at(tmp_path, step)
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(DiffctlWarning) as caught:
        assert newest_state(tmp_path) is None
    assert [str(warning.message).partition(": ")[2] for warning in caught] == [
        "using the state before it",
        f"no state is left in {tmp_path}",
    ]
    assert len(list(tmp_path.glob("damaged-state-*.sealed"))) == 2
    assert newest_state(tmp_path) is None, "this time without a warning"
    path = save_at(tmp_path, 10)
    assert equal(newest_state(tmp_path), state(10))
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done: list[tuple[str, str]] = []
    replace = os.replace

    def note_fsync(handle: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))

    def note_replace(source: str, target: Path) -> None:
        done.append(("replace", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    save_at(tmp_path, 1)
    kinds, (written, named, folder) = zip(*done, strict=True)
    assert kinds == ("fsync", "replace", "fsync")
    assert written.startswith(".state-000000001.sealed.")
    assert (named, folder) == ("state-000000001.sealed", tmp_path.name)


SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name != "__metadata__"
)


@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=5),
    st.booleans(),
)
def test_written_tensors_are_read_by_safetensors(requested, transposed):
    tensors = {name: torch.randint(0, 2, shape).to(kind) for name, (kind, shape) in requested.items()}
    if transposed:  # not contiguous
        tensors = {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    file = io.BytesIO()
    write_tensors(file, tensors)
    read = load(file.getvalue())
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in tensors.items())


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
    assert newest_step(tmp_path) == 2


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
            assert copies or newest_step(tmp_path) == 1
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
