"""Resumable states: two newest kept, checksummed, a damaged one reported and the one before used."""

import os
from pathlib import Path

import pytest
import torch

from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.train.state_file import newest_state, save_state


def save(folder: Path, step: int) -> Path:
    return save_state(
        folder, step, {"a": torch.full((100,), float(step))}, {"step": step, "curve": [0.1, 1 / 3]}
    )


def flip_a_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])


def test_the_two_newest_are_kept_and_the_newest_read(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9, 11):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("state-*.safetensors")) == [
        "state-000000010.safetensors",
        "state-000000011.safetensors",
    ]
    saved = newest_state(tmp_path)
    assert saved is not None
    assert torch.equal(saved.tensors["a"], torch.full((100,), 11.0))
    assert saved.values == {"step": 11, "curve": [0.1, 1 / 3]}


def test_no_state_is_none(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "torn manifest"])
def test_a_damaged_newest_state_is_reported_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    manifest = path.with_suffix(".json")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "flipped":
        flip_a_bit(path)
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    with pytest.warns(
        DiffctlWarning, match=r"state-000000002.safetensors is damaged .*: using the state before it"
    ):
        saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values["step"] == 1


def test_with_every_state_damaged_it_is_said_and_new_ones_are_kept(tmp_path: Path) -> None:
    for step in (20, 30):
        flip_a_bit(save(tmp_path, step))
    with pytest.warns(DiffctlWarning) as said:
        assert newest_state(tmp_path) is None
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "using the state before it",
        "no state is left, so the training begins again at step 0",
    ]
    assert len(list(tmp_path.glob("damaged-state-*.safetensors"))) == 2
    assert newest_state(tmp_path) is None, "and this time without a warning"
    path = save(tmp_path, 10)  # of the training that has begun again
    assert path.exists()
    saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values["step"] == 10
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.with_suffix(".json").name, path.name]


def test_the_state_just_written_is_never_dropped(tmp_path: Path) -> None:
    for step in (20, 30, 10):
        path = save(tmp_path, step)
    assert path.exists()


def test_the_checksum_is_that_of_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    written = os.replace

    def spoiling(source: str, target: Path) -> None:
        written(source, target)
        if target.suffix == ".safetensors":
            flip_a_bit(target)

    monkeypatch.setattr("os.replace", spoiling)
    save(tmp_path, 2)
    with pytest.warns(DiffctlWarning, match="its checksum does not match"):
        saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values["step"] == 1


def test_a_state_is_on_the_disk_before_its_name_is_and_counts_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, name, folder; and the manifest, by which it counts, only after all of that."""
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
    save(tmp_path, 1)
    kinds, names = zip(*done, strict=True)
    assert kinds == ("fsync", "replace", "fsync") * 2
    for (written, named, folder), name in ((names[:3], "safetensors"), (names[3:], "json")):
        assert written.startswith(f".state-000000001.{name}.")
        assert named == f"state-000000001.{name}"
        assert folder == tmp_path.name


def test_a_failed_save_keeps_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiffctlError, match=r"cannot save .* \(No space left on device\): make room"):
        save(tmp_path, 2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    save(tmp_path, 2)
    saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.values["step"] == 2
