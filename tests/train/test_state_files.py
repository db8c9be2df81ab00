"""Resumable states: two newest kept, sealed, a damaged one reported and the one before used."""

import io
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from diffusion.system.checksums import write_checksummed
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.train.checkpoint.state_files import SavedState, newest_state, save_state
from diffusion.train.checkpoint.state_values import StateValues
from diffusion.train.checkpoint.tensor_stream import KINDS, write_tensors
from tests.helpers.damaged_bytes import Damage, damages

CURVE = [{"step": 1.0, "loss": 1 / 3}]


def state(step: int) -> SavedState:
    values = StateValues(step=step, skipped=1, window={"loss": 0.1, "count": 1.0}, history=CURVE)
    return SavedState({"a": torch.full((100,), float(step)), "b": torch.tensor([True, False])}, values)


def save_at(folder: Path, step: int) -> Path:
    return save_state(folder, state(step))


def equal(one: SavedState, other: SavedState) -> bool:
    same = one.values == other.values and one.tensors.keys() == other.tensors.keys()
    return same and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def flip_a_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])


def test_the_two_newest_are_kept_and_the_newest_read(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9, 11):
        save_at(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-000000010.sealed",
        "state-000000011.sealed",
    ]
    saved = newest_state(tmp_path)
    assert saved is not None
    assert equal(saved, state(11))


def test_no_state_is_none(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages())
def test_whatever_happens_to_a_byte_the_state_before_is_used(tmp_path: Path, damage: Damage) -> None:
    save_at(tmp_path, 1)
    path = save_at(tmp_path, 2)
    whole = path.read_bytes()
    changed = damage(whole)
    path.write_bytes(changed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saved = newest_state(tmp_path)
    assert saved is not None
    assert equal(saved, state(2 if changed == whole else 1))
    told = [f"{path} is damaged (it", "using the state before it"]
    assert changed == whole or all(part in str(said[0].message) for part in told)


@pytest.mark.parametrize("text", ["[]", "null", "5", "[" * 100_000, '{"step": 2, "more": 1}', '{"step": -1}'])
def test_counters_that_are_none_are_damage_even_under_a_right_seal(tmp_path: Path, text: str) -> None:
    save_at(tmp_path, 1)
    values = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    write_checksummed(tmp_path / "state-000000002.sealed", lambda file: file.write(save({"values": values})))
    with pytest.warns(DiffctlWarning, match=r"state-000000002.sealed is damaged \(the list of its counters"):
        saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values.step == 1


@pytest.mark.parametrize("content", [b"", b"x" * 100, save({"a": torch.ones(1)})])
def test_what_holds_no_state_is_damage_even_under_a_right_seal(tmp_path: Path, content: bytes) -> None:
    write_checksummed(tmp_path / "state-000000002.sealed", lambda file: file.write(content))
    with pytest.warns(DiffctlWarning, match=r"state-000000002.sealed is damaged \(it h"):
        assert newest_state(tmp_path) is None


def test_a_state_of_another_step_than_its_name_is_damaged(tmp_path: Path) -> None:
    """By its seal, which knows the name; and by its counter, should somebody seal it anew."""
    path = save_at(tmp_path, 120)
    path.rename(tmp_path / "state-000000020.sealed")
    with pytest.warns(DiffctlWarning, match="state-000000020.sealed is damaged .its checksum does not match"):
        assert newest_state(tmp_path) is None
    content = save_at(tmp_path, 120).read_bytes()[:-32]
    write_checksummed(tmp_path / "state-000000500.sealed", lambda file: file.write(content))
    with pytest.warns(DiffctlWarning, match="state-000000500.sealed is damaged .it is of step 120"):
        saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values.step == 120


def test_foreign_files_are_no_states(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    for name in ("state-x.sealed", "state-.sealed", "state-000000009.json", "notes.txt"):
        (tmp_path / name).write_text("mine")
    assert newest_state(tmp_path) is not None
    save_at(tmp_path, 2)
    save_at(tmp_path, 3)
    assert len(list(tmp_path.iterdir())) == 6


def test_with_every_state_damaged_it_is_said_and_new_ones_are_kept(tmp_path: Path) -> None:
    for step in (20, 30):
        flip_a_bit(save_at(tmp_path, step))
    with pytest.warns(DiffctlWarning) as said:
        assert newest_state(tmp_path) is None
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "using the state before it",
        "no state is left, so the training begins again at step 0",
    ]
    assert len(list(tmp_path.glob("damaged-state-*.sealed"))) == 2
    assert newest_state(tmp_path) is None, "and this time without a warning"
    path = save_at(tmp_path, 10)  # of the training that has begun again
    saved = newest_state(tmp_path)
    assert saved is not None
    assert equal(saved, state(10))
    assert list(tmp_path.iterdir()) == [path]


def test_the_state_just_written_is_never_dropped(tmp_path: Path) -> None:
    for step in (20, 30, 10):
        path = save_at(tmp_path, step)
    assert path.exists()


def test_the_checksum_is_that_of_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_at(tmp_path, 1)
    written = os.replace

    def spoiling(source: str, target: Path) -> None:
        written(source, target)
        flip_a_bit(target)

    monkeypatch.setattr("os.replace", spoiling)
    save_at(tmp_path, 2)
    monkeypatch.undo()
    with pytest.warns(DiffctlWarning, match="its checksum does not match"):
        saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values.step == 1


def test_a_state_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, name, folder: it counts by its name, which it has when all of it is there."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def noted_replace(source: str, target: Path) -> None:
        done.append(("replace", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save_at(tmp_path, 1)
    kinds, (written, named, folder) = zip(*done, strict=True)
    assert kinds == ("fsync", "replace", "fsync")
    assert written.startswith(".state-000000001.sealed.")
    assert named == "state-000000001.sealed"
    assert folder == tmp_path.name


def test_a_failed_save_keeps_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_at(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiffctlError, match=r"cannot save .* \(No space left on device\): make room"):
        save_at(tmp_path, 2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    save_at(tmp_path, 2)
    saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values.step == 2


SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name != "__metadata__"
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(KINDS)), SHAPES), max_size=5), st.booleans())
def test_tensors_are_written_as_safetensors_reads_them(
    asked: dict[str, tuple[torch.dtype, list[int]]], turned: bool
) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(kind) for name, (kind, shape) in asked.items()}
    if turned:  # laid in memory otherwise than their shapes say
        tensors = {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    file = io.BytesIO()
    write_tensors(file, tensors)
    read = load(file.getvalue())
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_save_holds_no_second_copy_of_the_tensors() -> None:
    """What is handed to the file at a time is a tensor's own memory."""
    tensor = torch.arange(1000.0)

    pieces: list[int] = []

    class File:
        def write(self, data: memoryview | bytes) -> int:
            pieces.append(torch.frombuffer(data, dtype=torch.uint8).data_ptr())
            return len(data)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a buffer that is read alone
        write_tensors(File(), {"a": tensor})
    assert pieces[1] == tensor.data_ptr()
