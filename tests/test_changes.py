"""A training that begins afresh says which fields of its configuration are new."""

from pathlib import Path

from diffusion.changes import changed_fields
from diffusion.trainrun import open_run


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


def test_the_newest_other_training_is_compared_with(tmp_path: Path) -> None:
    for name, rate in (("a", 1), ("b", 2), ("c", 3)):
        with open_run(tmp_path, name, config={"train": {"lr": rate}}) as run:
            before = {"a": None, "b": "train.lr 1 → 2", "c": "train.lr 2 → 3"}[name]
            assert run.changes() == (before and f"{before} (against {tmp_path / chr(ord(name) - 1)})")
    with open_run(tmp_path, "a", config={"train": {"lr": 1}}):
        pass
    with open_run(tmp_path, "d", config={"train": {"lr": 4}}) as run:
        assert run.changes() == f"train.lr 1 → 4 (against {tmp_path / 'a'})"


def test_a_training_that_begins_again_has_no_other_configuration(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with open_run(tmp_path, name, config={"name": name}):
            pass
    for fresh in (True, False):  # False: killed before anything was saved
        with open_run(tmp_path, "b", fresh=fresh, config={"name": "b"}) as run:
            assert run.changes() is None
    with open_run(tmp_path, "c", fresh=True, config={"name": "c"}) as run:
        assert run.changes() == f"name b → c (against {tmp_path / 'b'})"
