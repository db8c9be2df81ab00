"""The run directory: lock, notes, `--fresh` and `--keep`; resume from another training, bitwise equal."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.code_digest import CodeSince, code_digest
from diffusion.images.store import ImageStore
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from diffusion.system.files import copy_file
from diffusion.system.limits import MAX_COUNT
from diffusion.system.locks import LockBusy
from diffusion.train.checkpoint.run_dir import RunDir, open_run, publish_snapshots, restore_state
from diffusion.train.checkpoint.state_files import (
    newest_state,
    newest_step,
    read_state,
    save_state,
    state_files,
)
from diffusion.train.optimizers.lr_schedule import ConstantLR
from diffusion.train.plan import DenoiserPlan, TrainPlan, plan_artefact
from diffusion.train.train_config import CURVE_ROWS, TrainConfig
from diffusion.train.train_state import TrainState
from tests.helpers import trainings
from tests.helpers.trainings import assert_same, run_in
from tests.train.test_state_files import equal
from tests.train.test_state_files import state as state_at

OLD = {"diffusion.process.losses": "1", "diffusion.model.unet": "2"}
NEW = {"diffusion.process.losses": "3", "diffusion.model.unet": "2"}


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


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])  # of CUDA and of Apple's GPUs
def test_a_state_that_does_not_fit_the_memory_is_not_to_be_discarded(monkeypatch, kind):
    def restore(self: TrainState, saved: object) -> None:
        raise kind("out of memory")

    monkeypatch.setattr(TrainState, "restore", restore)
    with pytest.raises(DiffctlError, match=r"does not fit the memory: (?!.*--fresh)"):
        restore_state(TrainState.__new__(TrainState), state_at(4), "the state")


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
    with open_run(tmp_path, "d", config={"train": {"lr": 4, "freeze": ["a"], "shard": True}}) as run:
        fields = 'train.freeze not set → ["a"], train.lr 1 → 4, train.shard not set → true'
        assert f"{fields} (against {tmp_path / 'a'})" in str(run.changes())


def test_other_code_starts_from_scratch_and_names_the_changed_files(tmp_path):
    with open_by(tmp_path, "a", OLD) as run:
        save_state(run.folder, state_at(600))
    with open_by(tmp_path, "b", NEW) as run:
        changes = str(run.changes())
        assert "code has changed in process/losses.py since step 600" in changes
        assert "`diffctl run --keep`" in changes
    with open_by(tmp_path, "c", NEW, lr=2) as run:  # a changed configuration is reported first
        assert "lr 1 → 2" in str(run.changes())


def test_keep_resumes_from_the_states_of_other_code(tmp_path):
    with open_by(tmp_path, "a", OLD) as run:
        for step in (300, 600):
            save_state(run.folder, state_at(step))
        (run.folder / ".state-000000900.sealed.x.tmp").write_bytes(b"torn")  # of a save that was killed
    with open_by(tmp_path, "other", OLD, lr=2):
        pass
    with open_by(tmp_path, "b", NEW) as run:
        assert run.keep() == tmp_path / "a"
        assert equal(newest_state(run.folder), state_at(600))
        save_state(run.folder, state_at(700))
        assert run.keep() is None, "this training is further"
    (tmp_path / "a/state-000000600.sealed").write_bytes(b"")  # the copy does not depend on it
    assert newest_state(tmp_path / "b") is not None


def test_keep_replaces_the_earlier_states_of_the_new_code(tmp_path):
    with open_by(tmp_path, "a", OLD) as run:
        save_state(run.folder, state_at(600))
    with open_by(tmp_path, "b", NEW) as run:
        save_state(run.folder, state_at(20))  # it started from scratch, and was stopped
    with open_by(tmp_path, "b", NEW) as run:
        assert run.keep() == tmp_path / "a"
        assert equal(newest_state(run.folder), state_at(600))


def test_keep_needs_a_state_of_a_training_that_does_not_run(tmp_path):
    with open_by(tmp_path, "a", OLD):
        with pytest.raises(UsageError, match="--keep"), open_by(tmp_path, "b", NEW) as run:
            run.keep()
        save_state(tmp_path / "a", state_at(5))
        with open_by(tmp_path, "b", NEW) as run:
            assert run.is_new, "the refusal leaves no configuration"
            with pytest.raises(LockBusy):
                run.keep()


PARTS = [[0, 0.002], [10, 0.0005]]


def plan_of(
    store: ImageStore, steps: int, lr: Any = 0.002, sections: dict[str, Any] | None = None, **settings: Any
) -> DenoiserPlan:
    train = {"steps": steps, "lr": lr, "save_every": 3, "log_every": 2, **settings}
    return trainings.plan_of(store, train=train, **sections or {})


def assert_as_from_scratch(store: ImageStore, plan: DenoiserPlan, state: TrainState, folder: Path) -> None:
    """Assert weights, moments, averages, counters and curve of the same training from scratch."""
    _, whole, begun = run_in(store, plan, folder / "alone")
    assert begun == 0
    assert_same(state, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [{}, {"process": {"t_sampler": "loss-aware", "loss": "vlb", "timesteps": 4}}],
    ids=["plain", "loss-aware"],
)
def test_a_longer_training_resumes_and_is_bitwise_equal(store, tmp_path, sections):
    def plan(steps: int) -> TrainPlan:
        return plan_of(store, steps, sections=sections)

    short, _, _ = run_in(store, plan(8), tmp_path / "runs")
    run, state, begun = run_in(store, plan(16), tmp_path / "runs")
    assert begun == 8
    assert run.start is not None
    assert (run.start.folder, run.start.why) == (short.folder, "train.steps 8 → 16 changes no step before")
    assert_as_from_scratch(store, plan(16), state, tmp_path)
    assert newest_step(short.folder) == 8, "the other training keeps its states"


@pytest.mark.slow
def test_a_shorter_training_resumes_from_a_state_before_its_end(store, tmp_path):
    run_in(store, plan_of(store, 12), tmp_path / "runs")  # keeps the states of steps 9 and 12
    _, state, begun = run_in(store, plan_of(store, 10), tmp_path / "runs")
    assert begun == 9
    assert_as_from_scratch(store, plan_of(store, 10), state, tmp_path)
    run, _, begun = run_in(store, plan_of(store, 7), tmp_path / "runs")
    assert (begun, run.start) == (0, None)
    assert "has no state up to step 6, the last that it could resume from" in str(run.changes())


def test_a_training_that_ends_at_a_state_of_a_longer_one_equals_one_from_scratch(store, tmp_path):
    """The last step has a log entry and a snapshot, which the longer training lacks."""
    profiles = {"ema_profiles": {"sigma_rel": [0.1], "every": 4}, "log_every": 4}
    run_in(store, plan_of(store, 9, **profiles), tmp_path / "runs")  # keeps the states of steps 6 and 9
    run, state, begun = run_in(store, plan_of(store, 6, **profiles), tmp_path / "runs")
    assert (begun, [row["step"] for row in state.history]) == (0, [4, 6])
    assert "has no state up to step 5, the last that it could resume from" in str(run.changes())
    publish_snapshots(run.folder, tmp_path / "ema", state.plan.train, plan_artefact(state.plan, state.code))
    _, same, begun = run_in(store, plan_of(store, 6, log_every=4), tmp_path / "runs")
    assert begun == 6, "the other one ended there too"
    assert same.history == state.history


@pytest.mark.slow
def test_a_later_change_of_the_rate_resumes_and_an_earlier_one_does_not(store, tmp_path):
    root = tmp_path / "runs"
    first, _, _ = run_in(store, plan_of(store, 8), root)
    later = plan_of(store, 16, {"schedule": "steps", "rates": PARTS})
    run, state, begun = run_in(store, later, root)
    assert begun == 8
    assert run.start is not None
    assert run.start.folder == first.folder
    assert_as_from_scratch(store, later, state, tmp_path)
    before = plan_of(store, 16, {"schedule": "steps", "rates": [[0, 0.002], [2, 0.0005]]})
    run, _, begun = run_in(store, before, root)
    assert begun == 0
    assert "train.lr.rates [[0, 0.002], [10, 0.0005... → [[0, 0.002], [2, 0.0005]" in str(run.changes())


def test_a_training_with_the_schedule_of_a_removed_plugin_is_no_start(tmp_path):
    for name, schedule in (("a", "removed"), ("b", "constant")):
        config = {"train": {"steps": 8, "lr": {"schedule": schedule, "rate": 0.002}}}
        with open_run(tmp_path, name, config=config, code=OLD, resume=name == "b") as run:
            assert run.start is None
    assert "train.lr.schedule removed → constant" in str(run.changes())


@pytest.mark.parametrize("changes", [{"seed": 1}, {"ema_decay": 0.5}])
def test_a_change_of_the_steps_themselves_starts_from_scratch(store, tmp_path, changes):
    run_in(store, plan_of(store, 4), tmp_path)
    run, _, begun = run_in(store, plan_of(store, 8, **changes), tmp_path, stop_at=1)
    assert begun == 0
    assert f"train.{next(iter(changes))} " in str(run.changes())


def test_a_state_of_other_code_is_not_used(store, tmp_path):
    """The state itself records which code made it; the note next to it does not count."""
    short, _, _ = run_in(store, plan_of(store, 3), tmp_path)
    (path,) = state_files(short.folder)
    state = read_state(path)
    code = [state.values.code[0].model_copy(update={"digest": "another"}), *state.values.code]
    save_state(short.folder, state._replace(values=state.values.model_copy(update={"code": code})))
    _, _, begun = run_in(store, plan_of(store, 8), tmp_path, stop_at=1)
    assert begun == 0


def test_the_furthest_state_of_all_trainings_is_used(store, tmp_path):
    for steps, lr in ((3, 0.002), (5, 0.002), (7, 0.001)):
        run_in(store, plan_of(store, steps, lr), tmp_path)
    _, _, begun = run_in(store, plan_of(store, 9), tmp_path, stop_at=6)
    assert begun == 5


def test_a_training_that_goes_on_may_remove_the_state_meanwhile(tmp_path, monkeypatch):
    """The newer state is used, and the other training needs no heartbeat."""

    def save(step: int) -> Path:
        since = CodeSince(step=0, digest=code_digest(OLD), torch="2")
        saved = state_at(step)
        return save_state(
            tmp_path / "a", saved._replace(values=saved.values.model_copy(update={"code": [since]}))
        )

    def copy(source: Path, path: Path) -> None:
        if source == oldest:
            oldest.unlink()
            save(20)
        copy_file(source, path)

    with open_run(tmp_path, "a", config={"train": {"steps": 50, "lr": 0.002}}, code=OLD):
        oldest = save(10)
        (tmp_path / "a/run.json").unlink()
        monkeypatch.setattr("diffusion.train.checkpoint.run_dir.copy_file", copy)
        config = {"train": {"steps": 60, "lr": 0.002}}
        with open_run(tmp_path, "b", config=config, code=OLD, resume=True) as run:
            assert newest_step(run.folder) == 20
            assert run.start is not None
            assert run.start.step == 20


@given(st.integers(1, MAX_COUNT), st.integers(1, 10**6))
def test_a_curve_has_few_evenly_spaced_rows_and_the_last(steps: int, log_every: int) -> None:
    config = TrainConfig(steps=steps, log_every=log_every, batch_size=1, lr=ConstantLR(rate=1e-3))
    every = log_every * -(-steps // (log_every * CURVE_ROWS))
    assert every % log_every == 0
    assert steps // every <= CURVE_ROWS
    assert config.is_in_curve(steps)
    assert config.is_in_curve(every) or every > steps
    assert not config.is_in_curve(every + 1) or every in (1, steps - 1)
    short = steps <= log_every * CURVE_ROWS
    assert config.is_in_curve(log_every) or not short or log_every > steps
