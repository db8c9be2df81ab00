"""A training goes on from another one's state where every step so far would be the same, and is the same."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import ImageStore, open_store
from diffusion.model.model_file import save_artefact
from diffusion.system.errors import DiffctlWarning, Interrupted
from diffusion.train.config import CURVE_ROWS, TrainConfig
from diffusion.train.course import Constant
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import TrainPlan, plan_training, result_of
from diffusion.train.loop import Silent, TrainState, new_state, thinned, train
from diffusion.train.others import CODE
from diffusion.train.run_folder import RunFolder, open_training
from diffusion.train.state_file import newest_step, read_state, save_state, state_files
from tests.conftest import params, write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import (
    logged_steps,
    model_bytes,
    prepare,
    signal_at,
    train_to_the_end,
    uninterrupted,
)

CPU = torch.device("cpu")
PARTS = [[0, 0.002], [10, 0.0005]]


@pytest.fixture
def store(digits_store: Path) -> ImageStore:
    return open_store(digits_store)


def plan_of(store: ImageStore, steps: int, lr: Any = 0.002, **settings: Any) -> TrainPlan:
    changes = {"steps": steps, "lr": lr, "save_every": 3, "log_every": 2, **settings}
    return plan_training(parse(params(train=changes), "test"), store.meta, CPU)


def trained(
    store: ImageStore, plan: TrainPlan, root: Path, stop_at: int | None = None, **options: bool
) -> tuple[RunFolder, TrainState, int]:
    """Train in `root` to the end, or until a stop; the folder, the state and the step it went on from."""

    def check_stop() -> None:
        if state.step == stop_at:
            raise Interrupted("stopped", 15)

    with open_training(plan, root, **options) as run:
        state = new_state(plan, CPU)
        run.restore(state)
        begun = state.step
        try:
            train(state, store, ProcessGroup(CPU), Silent(), run.save, check_stop)
        except Interrupted:
            assert state.step == stop_at
    return run, state, begun


def file_of(state: TrainState, folder: Path) -> bytes:
    """The model file that the training gives."""
    path = folder / "model.safetensors"
    folder.mkdir(exist_ok=True)
    save_artefact(path, state.ema.state_dict(), result_of(state.plan, state.code))  # type: ignore[arg-type]
    return path.read_bytes()


def assert_as_at_once(store: ImageStore, plan: TrainPlan, state: TrainState, folder: Path) -> None:
    """The model file's bytes, the saved tensors and the curve are those of a training from the start."""
    _, whole, begun = trained(store, plan, folder / "alone")
    assert begun == 0
    assert file_of(state, folder) == file_of(whole, folder)
    ours, theirs = state.tensors(), whole.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert state.history == whole.history


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"dropout": 0.2}},
        {"process": {"t_sampler": "loss-aware", "loss": "vlb", "timesteps": 4}},
    ],
    ids=["plain", "dropout", "loss-aware"],
)
def test_a_longer_training_goes_on_and_ends_as_one_of_that_length(
    store: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    def plan(steps: int) -> TrainPlan:
        values = params(train={"steps": steps, "lr": 0.002, "save_every": 3, "log_every": 2}, **changes)
        return plan_training(parse(values, "test"), store.meta, CPU)

    short, _, _ = trained(store, plan(8), tmp_path / "runs")
    run, state, begun = trained(store, plan(16), tmp_path / "runs")
    assert begun == 8
    assert run.start is not None
    assert run.start.spoken() == (
        f"goes on from step 8 of {short.folder}: train.steps 8 → 16 changes no step before"
    )
    assert_as_at_once(store, plan(16), state, tmp_path)
    assert newest_step(short.folder) == 8, "the other training keeps what it has"


@pytest.mark.parametrize("stop_at", [9, 12, 15])
def test_it_does_so_when_it_is_stopped_in_between(store: ImageStore, tmp_path: Path, stop_at: int) -> None:
    trained(store, plan_of(store, 8), tmp_path / "runs", stop_at=5)
    _, _, begun = trained(store, plan_of(store, 16), tmp_path / "runs", stop_at=stop_at)
    assert begun == 5
    _, state, begun = trained(store, plan_of(store, 16), tmp_path / "runs")
    assert begun == stop_at
    assert_as_at_once(store, plan_of(store, 16), state, tmp_path)


def test_a_shorter_one_goes_on_from_a_state_that_is_not_beyond_its_end(
    store: ImageStore, tmp_path: Path
) -> None:
    trained(store, plan_of(store, 12), tmp_path / "runs")  # which has kept the states of steps 9 and 12
    _, state, begun = trained(store, plan_of(store, 10), tmp_path / "runs")
    assert begun == 9
    assert_as_at_once(store, plan_of(store, 10), state, tmp_path)
    run, _, begun = trained(store, plan_of(store, 7), tmp_path / "runs")
    assert (begun, run.start) == (0, None)
    assert run.changes() == (
        f"begun afresh, since train.steps 10 → 7 ends it, before step 9, the first that is saved in "
        f"{tmp_path / 'runs'}/{newest_other(run)}"
    )


def newest_other(run: RunFolder) -> str:
    others = [path for path in run.folder.parent.iterdir() if path != run.folder]
    return max(others, key=lambda path: (path / "run.json").stat().st_mtime_ns).name


def test_a_course_that_changes_later_goes_on_and_one_that_changes_before_begins_anew(
    store: ImageStore, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    first, _, _ = trained(store, plan_of(store, 8), root)
    later = {"course": "steps", "rates": PARTS}
    run, state, begun = trained(store, plan_of(store, 16, later), root)
    assert begun == 8
    assert run.start is not None
    assert run.start.folder == first.folder
    assert run.start.why.startswith("train.lr.course constant → steps, train.lr.rate 0.002 → -, ")
    assert_as_at_once(store, plan_of(store, 16, later), state, tmp_path)
    before = {"course": "steps", "rates": [[0, 0.002], [2, 0.0005]]}
    run, _, begun = trained(store, plan_of(store, 16, before), root)
    assert begun == 0
    said = run.changes()
    assert said is not None
    assert said.startswith(
        "begun afresh, since train.lr.rates [[0, 0.002], [10, 0.0005… → [[0, 0.002], [2, 0.0005]"
    )
    assert "changes the rate from step 2 on, before step 15, the first that is saved in" in said


def test_a_cool_down_goes_on_from_before_it(store: ImageStore, tmp_path: Path) -> None:
    def cooled(steps: int) -> TrainPlan:
        return plan_of(store, steps, {"rate": 0.002, "cooldown": 4})

    trained(store, cooled(12), tmp_path / "runs")  # lower from step 9 on; states of steps 9 and 12
    run, state, begun = trained(store, cooled(16), tmp_path / "runs")
    assert begun == 9
    assert run.start is not None
    assert run.start.why == "train.steps 12 → 16 changes the rate from step 9 on"
    assert_as_at_once(store, cooled(16), state, tmp_path)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"ema_decay": 0.5}, {"batch_size": 4}, {"p_uncond": 0.3}])
def test_what_changes_the_steps_themselves_begins_anew(
    store: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    trained(store, plan_of(store, 4), tmp_path)
    run, _, begun = trained(store, plan_of(store, 8, **changes), tmp_path, stop_at=1)
    assert begun == 0
    assert f"the configuration is another one: train.{next(iter(changes))} " in str(run.changes())


def test_fresh_goes_on_from_nothing_also_when_it_is_started_again(store: ImageStore, tmp_path: Path) -> None:
    trained(store, plan_of(store, 4), tmp_path)
    with open_training(plan_of(store, 8), tmp_path, fresh=True) as run:
        assert run.start is None
    _, _, begun = trained(store, plan_of(store, 8), tmp_path, stop_at=1)
    assert begun == 0


def test_a_damaged_state_is_told_and_the_one_before_taken(store: ImageStore, tmp_path: Path) -> None:
    short, _, _ = trained(store, plan_of(store, 6), tmp_path)
    newest = state_files(short.folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(DiffctlWarning, match=rf"{newest.name} is damaged .*: nothing goes on from it"):
        _, _, begun = trained(store, plan_of(store, 8), tmp_path, stop_at=4)
    assert begun == 3


def test_steps_that_other_code_made_are_not_this_codes(store: ImageStore, tmp_path: Path) -> None:
    """Nor does another file of code beside them count: what made a state stands in it."""
    short, _, _ = trained(store, plan_of(store, 3), tmp_path)
    (path,) = state_files(short.folder)
    state = read_state(path)
    code = [state.values.code[0].model_copy(update={"digest": "another"}), *state.values.code]
    save_state(short.folder, state._replace(values=state.values.model_copy(update={"code": code})))
    assert (short.folder / CODE).exists()
    _, _, begun = trained(store, plan_of(store, 8), tmp_path, stop_at=1)
    assert begun == 0


def test_the_furthest_state_of_all_is_taken(store: ImageStore, tmp_path: Path) -> None:
    for steps, lr in ((3, 0.002), (5, 0.002), (7, 0.001)):
        trained(store, plan_of(store, steps, lr), tmp_path)
    _, _, begun = trained(store, plan_of(store, 9), tmp_path, stop_at=6)
    assert begun == 5


def test_a_curve_of_many_lengths_stays_short() -> None:
    def lengthened() -> Iterator[int]:
        rows: list[dict[str, float]] = []
        for steps in (3_000, 6_000, 13_001, 100_000):
            config = TrainConfig(steps=steps, log_every=1, batch_size=1, lr=Constant(rate=1e-3))
            for step in range(int(rows[-1]["step"]) + 1 if rows else 1, steps + 1):
                if config.is_charted(step):
                    rows = thinned([*rows, {"step": step}], config)
            assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
            assert rows[-1]["step"] == steps
            yield len(rows)

    assert max(lengthened()) <= 2 * (CURVE_ROWS + 1)


@pytest.mark.slow
def test_as_real_processes_and_killed_in_between(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N steps, then 2N, killed twice: the bytes of the model that 2N steps at once give."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    settings = {"lr": 0.002, "log_every": 1, "save_every": 6, "preview_every": 20}
    prepare(project, steps=40, **settings)  # type: ignore[arg-type]
    wanted = uninterrupted(project)
    write_params(project, train={**settings, "steps": 20})
    train_to_the_end(project)
    write_params(project, train={**settings, "steps": 40})
    for step in sorted(random.Random(0).sample(range(23, 38), 2)):
        signal_at(project, step, signal.SIGKILL)
    end = train_to_the_end(project)
    assert "going on after step" in end.stderr
    assert model_bytes(project) == wanted
    assert sorted(logged_steps(project)) == list(range(1, 41))
