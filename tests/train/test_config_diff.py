"""A training that begins afresh says which fields of its configuration are new."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from diffusion.system.errors import UsageError
from diffusion.system.locks import LockBusy
from diffusion.train.config_diff import changed_fields
from diffusion.train.run_folder import RunFolder, open_run
from diffusion.train.state_file import SavedState, newest_state, save_state
from diffusion.train.state_values import StateValues


def test_fields_that_differ_are_named_with_both_values() -> None:
    old = {"train": {"lr": 0.002, "seed": 0}, "model": {"attention": [4]}, "gone": 1}
    new = {"train": {"lr": 0.001, "seed": 0}, "model": {"attention": [4, 8]}, "digest": "d" * 64}
    assert changed_fields(old, new) == [
        f"digest - → {'d' * 24}…",
        "gone 1 → -",
        "model.attention [4] → [4, 8]",
        "train.lr 0.002 → 0.001",
    ]
    assert changed_fields(old, old) == []


def told(fields: str, other: Path) -> str:
    return f"begun afresh, since the configuration is another one: {fields} (against {other})"


def test_the_newest_other_training_is_compared_with(tmp_path: Path) -> None:
    for name, rate in (("a", 1), ("b", 2), ("c", 3)):
        with open_run(tmp_path, name, config={"train": {"lr": rate}}) as run:
            before = {"a": None, "b": "train.lr 1 → 2", "c": "train.lr 2 → 3"}[name]
            assert run.changes() == (before and told(before, tmp_path / chr(ord(name) - 1)))
    with open_run(tmp_path, "a", config={"train": {"lr": 1}}):
        pass
    with open_run(tmp_path, "d", config={"train": {"lr": 4}}) as run:
        assert run.changes() == told("train.lr 1 → 4", tmp_path / "a")


def test_a_training_that_begins_again_has_no_other_configuration(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with open_run(tmp_path, name, config={"name": name}):
            pass
    for fresh in (True, False):  # False: killed before anything was saved
        with open_run(tmp_path, "b", fresh=fresh, config={"name": "b"}) as run:
            assert run.changes() is None
    with open_run(tmp_path, "c", fresh=True, config={"name": "c"}) as run:
        assert run.changes() == told("name b → c", tmp_path / "b")


OLD = {"diffusion.process.losses": "1", "diffusion.model.unet": "2"}
NEW = {"diffusion.process.losses": "3", "diffusion.model.unet": "2"}


def saved_at(step: int) -> SavedState:
    return SavedState({"w": torch.full((1,), float(step))}, StateValues(step=step))


def open_by(root: Path, name: str, code: dict[str, str], **config: int) -> AbstractContextManager[RunFolder]:
    return open_run(root, name, config=config or {"lr": 1}, code=code)


def test_a_training_by_other_code_begins_afresh_and_says_what_changed_since_when(tmp_path: Path) -> None:
    with open_by(tmp_path, "a", OLD) as run:
        save_state(run.folder, saved_at(600))
    with open_by(tmp_path, "b", NEW) as run:
        assert run.changes() == (
            "begun afresh, since the training's code has changed in process/losses.py since step 600 "
            f"(in {tmp_path / 'a'}): `diffctl run --keep` goes on from there instead"
        )
    with open_by(tmp_path, "c", NEW, lr=2) as run:  # what a person changed is what he is told of
        assert run.changes() == told("lr 1 → 2", tmp_path / "b")


def test_a_training_may_keep_what_other_code_has_trained(tmp_path: Path) -> None:
    with open_by(tmp_path, "a", OLD) as run:
        for step in (300, 600):
            save_state(run.folder, saved_at(step))
        torn = run.folder / ".state-000000900.sealed.x.tmp"  # of a save that was killed
        torn.write_bytes(b"torn")
    with open_by(tmp_path, "other", OLD, lr=2):
        pass
    with open_by(tmp_path, "b", NEW) as run:
        assert run.keep() == tmp_path / "a"
        saved = newest_state(run.folder)
        assert saved is not None
        assert saved.values.step == 600
        assert saved.tensors["w"].item() == 600
    (tmp_path / "a/state-000000600.sealed").write_bytes(b"")  # the copy is its own
    assert newest_state(tmp_path / "b") is not None


def test_keeping_needs_a_training_that_has_a_state_and_does_not_run(tmp_path: Path) -> None:
    with open_by(tmp_path, "a", OLD), open_by(tmp_path, "b", NEW) as run:
        with pytest.raises(UsageError, match="--keep goes on from a training of this configuration by other"):
            run.keep()
        save_state(tmp_path / "a", saved_at(5))
        with pytest.raises(LockBusy, match="is still training: stop it first"):
            run.keep()
