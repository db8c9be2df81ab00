"""The run directory: its lock and notes, `--fresh` and `--keep`, and why a training starts from scratch."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.locks import LockBusy
from diffusion.train.checkpoint.run_dir import RunDir, open_run
from diffusion.train.checkpoint.state_files import SavedState, StateValues, newest_state, save_state

OLD = {"diffusion.process.losses": "1", "diffusion.model.unet": "2"}
NEW = {"diffusion.process.losses": "3", "diffusion.model.unet": "2"}


def saved_at(step: int) -> SavedState:
    return SavedState({"w": torch.full((1,), float(step))}, StateValues(step=step))


def open_by(root: Path, name: str, code: dict[str, str], **config: int) -> AbstractContextManager[RunDir]:
    return open_run(root, name, config=config or {"lr": 1}, code=code)


@pytest.mark.parametrize("text", ["", "[]", '{"key": "x"}', "[" * 100_000])
def test_damaged_notes_are_ignored_with_a_warning(tmp_path, text):
    with open_run(tmp_path, "f", config={"lr": 1}) as first:
        pass
    for name in ("run.json", "config.json"):
        (first.folder / name).write_text(text)
    with (
        pytest.warns(DiffctlWarning, match=r"run.json is damaged"),
        open_run(tmp_path, "f", config={"lr": 1}) as again,
    ):
        assert again.key != first.key
    with open_run(tmp_path, "f") as whole:
        assert whole.key == again.key


def test_fresh_discards_the_directory_and_makes_a_new_key(tmp_path):
    with open_run(tmp_path, "f") as first:
        (first.folder / "state-000000001.sealed").write_bytes(b"x")
        (first.folder / "previews").mkdir()
    with open_run(tmp_path, "f") as again:
        assert again.key == first.key
    with open_run(tmp_path, "f", fresh=True) as fresh:
        assert fresh.key != first.key
        assert sorted(path.name for path in fresh.folder.iterdir()) == [
            "code.json",
            "config.json",
            "lock",
            "run.json",
        ]


def test_a_new_training_is_compared_with_the_newest_other(tmp_path):
    for name, rate in (("a", 1), ("b", 2), ("c", 3)):
        with open_run(tmp_path, name, config={"train": {"lr": rate}}) as run:
            before = {"a": None, "b": "train.lr 1 → 2", "c": "train.lr 2 → 3"}[name]
            assert (run.changes() or "None").count(str(before)) == 1
    with open_run(tmp_path, "a", config={"train": {"lr": 1}}):
        pass
    with open_run(tmp_path, "d", config={"train": {"lr": 4}}) as run:
        assert f"train.lr 1 → 4 (against {tmp_path / 'a'})" in str(run.changes())


def test_other_code_starts_from_scratch_and_names_the_changed_files(tmp_path):
    with open_by(tmp_path, "a", OLD) as run:
        save_state(run.folder, saved_at(600))
    with open_by(tmp_path, "b", NEW) as run:
        changes = str(run.changes())
        assert "code has changed in process/losses.py since step 600" in changes
        assert "`diffctl run --keep`" in changes
    with open_by(tmp_path, "c", NEW, lr=2) as run:  # a changed configuration is reported first
        assert "lr 1 → 2" in str(run.changes())


def test_keep_resumes_from_the_states_of_other_code(tmp_path):
    with open_by(tmp_path, "a", OLD) as run:
        for step in (300, 600):
            save_state(run.folder, saved_at(step))
        (run.folder / ".state-000000900.sealed.x.tmp").write_bytes(b"torn")  # of a save that was killed
    with open_by(tmp_path, "other", OLD, lr=2):
        pass
    with open_by(tmp_path, "b", NEW) as run:
        assert run.keep() == tmp_path / "a"
        saved = newest_state(run.folder)
        assert saved is not None
        assert (saved.values.step, saved.tensors["w"].item()) == (600, 600)
    (tmp_path / "a/state-000000600.sealed").write_bytes(b"")  # the copy does not depend on it
    assert newest_state(tmp_path / "b") is not None


def test_keep_needs_a_state_of_a_training_that_does_not_run(tmp_path):
    with open_by(tmp_path, "a", OLD), open_by(tmp_path, "b", NEW) as run:
        with pytest.raises(UsageError, match="--keep"):
            run.keep()
        save_state(tmp_path / "a", saved_at(5))
        with pytest.raises(LockBusy):
            run.keep()
