"""Averages beside a real training: what they are, what is made of them, and that nothing else changes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.config import parse
from diffusion.images.store import ImageStore, open_store
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.averages import new_averages, update_averages
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import DenoiserPlan, plan_training, result_of, training_fingerprint
from diffusion.train.loop import Silent, TrainState, new_state, train
from diffusion.train.run_folder import RunFolder, open_training
from diffusion.train.snapshots import publish_snapshots, save_snapshots
from tests.conftest import params
from tests.model.test_posthoc_ema import discrete

CPU = torch.device("cpu")
STEPS, EVERY = 24, 3
WIDTHS = [0.05, 0.1, 0.2]
AVERAGES: dict[str, Any] = {"widths": WIDTHS, "every": EVERY}

Weights = dict[str, Tensor]


@pytest.fixture
def store(digits_store: Path) -> ImageStore:
    return open_store(digits_store)


def plan_of(store: ImageStore, averages: dict[str, Any] | None = AVERAGES, **settings: Any) -> DenoiserPlan:
    changes = {"steps": STEPS, "lr": 0.002, "save_every": 6, "log_every": 4, "averages": averages, **settings}
    return plan_training(parse(params(train=changes), "test"), store.meta, CPU)


class Stopped(Exception):
    """The training ends here."""


def trained(
    store: ImageStore, plan: DenoiserPlan, root: Path, stop_at: int | None = None, *, keep: bool = False
) -> tuple[RunFolder, TrainState, int]:
    """Train in `root`, as the stage does, to the end or to a kill after a step; and where it has begun."""

    def die() -> None:
        if state.step == stop_at:
            raise Stopped

    def snapshot(state: TrainState) -> None:
        said = result_of(plan, state.code).model_copy(update={"step": state.step})
        save_snapshots(run.folder, state.averages, plan.train.widths, said)

    with open_training(plan, root, keep=keep) as run:
        state = new_state(plan, CPU)
        run.restore(state)
        begun = state.step
        try:
            train(state, store, ProcessGroup(CPU), Silent(), run.save, die, snapshot)
        except Stopped:
            assert state.step == stop_at
    return run, state, begun


def published(run: RunFolder, plan: DenoiserPlan, state: TrainState, out: Path) -> dict[str, bytes]:
    publish_snapshots(run.folder, out, plan.train, result_of(plan, state.code))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def model_bytes(plan: DenoiserPlan, state: TrainState, folder: Path) -> bytes:
    path = folder / "model.safetensors"
    save_artefact(path, state.ema.state_dict(), result_of(plan, state.code))
    return path.read_bytes()


def distance(a: Weights, b: Weights) -> float:
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def followed(store: ImageStore, plan: DenoiserPlan) -> list[Weights]:
    """The weights after every step."""
    seen: list[Weights] = []

    class Looking(Silent):
        def progress(self, step: int, total: int, values: dict[str, float]) -> None:
            seen.append({name: value.clone() for name, value in state.network.state_dict().items()})

    state = new_state(plan, CPU)
    train(state, store, ProcessGroup(CPU), Looking(), lambda state: None, lambda: None)
    return seen


def mean_of(weights: list[Weights], parts: list[float]) -> Weights:
    return {
        name: torch.stack(
            [part * each[name].double() for part, each in zip(parts, weights, strict=True)]
        ).sum(0)
        for name in weights[0]
    }


@pytest.mark.slow
def test_a_real_trainings_averages_are_sums_of_its_weights_and_any_width_is_made_of_two(
    store: ImageStore, tmp_path: Path
) -> None:
    plan = plan_of(store)
    run, state, _ = trained(store, plan, tmp_path / "runs")
    weights = followed(store, plan)
    published(run, plan, state, tmp_path / "ema")
    for width in WIDTHS:
        tracked, said = load_model(snapshot_path(tmp_path / "ema", width, STEPS))
        truth = mean_of(weights, discrete(width, STEPS))
        assert said.ema_width == width
        assert said.step == STEPS
        assert distance(tracked.state_dict(), truth) < 1e-4
    widest = load_model(snapshot_path(tmp_path / "ema", 0.2, STEPS)).network.state_dict()
    for path in (tmp_path / "ema").glob("0.2-*"):
        path.unlink()
    snapshots = Snapshots.of(tmp_path / "ema")
    assert snapshots.widths == [0.05, 0.1]
    for width in snapshots.widths:
        made, said = snapshots.reconstruct(width)
        tracked, told = load_model(snapshot_path(tmp_path / "ema", width, STEPS))
        assert said.model_dump(exclude={"weights_sha256"}) == told.model_dump(exclude={"weights_sha256"})
        for name, value in tracked.state_dict().items():
            assert torch.allclose(made[name], value, rtol=1e-6, atol=1e-7), name
    made, said = snapshots.reconstruct(0.2)
    error = snapshots.fit(0.2).error
    assert 0 < error < 0.1
    narrow = load_model(snapshot_path(tmp_path / "ema", 0.1, STEPS)).network.state_dict()
    assert distance(made, widest) < error * distance(narrow, widest)
    assert said.ema_width == 0.2
    assert said.model_sha256 != snapshots.last.model_sha256


def test_they_change_nothing_of_the_model_and_begin_a_training_of_their_own(
    store: ImageStore, tmp_path: Path
) -> None:
    without, plan = plan_of(store, None), plan_of(store)
    _, plain, _ = trained(store, without, tmp_path / "runs")
    run, state, begun = trained(store, plan, tmp_path / "runs")
    assert begun == 0, "what was not tracked from the start cannot be"
    assert training_fingerprint(plan) != training_fingerprint(without)
    assert "train.averages" in str(run.changes())
    assert model_bytes(plan, state, tmp_path) == model_bytes(without, plain, tmp_path)
    assert published(run, without, plain, tmp_path / "none") == {}


def test_turned_off_it_goes_on_without_them(store: ImageStore, tmp_path: Path) -> None:
    trained(store, plan_of(store), tmp_path / "runs", stop_at=14)
    without = plan_of(store, None)
    _, state, begun = trained(store, without, tmp_path / "runs")
    assert begun == 12
    _, alone, _ = trained(store, without, tmp_path / "alone")
    assert model_bytes(without, state, tmp_path) == model_bytes(without, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [7, 12])
def test_killed_it_ends_with_the_same_snapshots(store: ImageStore, tmp_path: Path, kill: int) -> None:
    plan = plan_of(store)
    run, whole, _ = trained(store, plan, tmp_path / "whole")
    wanted = published(run, plan, whole, tmp_path / "wanted")
    assert len(wanted) == 3 * STEPS // EVERY
    trained(store, plan, tmp_path / "runs", stop_at=kill)
    run, state, begun = trained(store, plan, tmp_path / "runs")
    assert 0 < begun <= kill
    assert published(run, plan, state, tmp_path / "ema") == wanted


@pytest.mark.slow
def test_a_longer_training_takes_the_snapshots_so_far(store: ImageStore, tmp_path: Path) -> None:
    plan = plan_of(store)
    run, whole, _ = trained(store, plan, tmp_path / "whole")
    wanted = published(run, plan, whole, tmp_path / "wanted")
    trained(store, plan_of(store, steps=13), tmp_path / "runs")
    run, state, begun = trained(store, plan, tmp_path / "runs")
    assert begun == 13
    assert published(run, plan, state, tmp_path / "ema") == wanted


@pytest.mark.slow
def test_kept_under_other_code_it_takes_the_snapshots_along(store: ImageStore, tmp_path: Path) -> None:
    plan = plan_of(store)
    run, whole, _ = trained(store, plan, tmp_path / "whole")
    published(run, plan, whole, tmp_path / "wanted")
    edited = plan.code[0].model_copy(update={"digest": "0" * 16})
    trained(store, plan.model_copy(update={"code": (edited,)}), tmp_path / "runs", stop_at=14)
    run, state, begun = trained(store, plan, tmp_path / "runs", keep=True)
    assert begun == 12
    assert [one.digest for one in state.code] == [edited.digest, plan.code[0].digest]
    published(run, plan, state, tmp_path / "ema")
    assert said_by(tmp_path / "ema") == said_by(tmp_path / "wanted")


def said_by(folder: Path) -> dict[str, str]:
    """Each snapshot's digest, which is of its weights and of all but the code that made them."""
    return {path.name: read_artefact(path).model_sha256 for path in folder.iterdir()}


def test_a_step_that_was_not_finite_counts_the_weights_before_once_more() -> None:
    network = torch.nn.Linear(2, 1)
    averages = new_averages(network, (0.1,))
    seen = []
    for step in range(1, 5):
        if step != 3:
            with torch.no_grad():
                network.weight.add_(step)
        seen.append({"weight": network.weight.detach().clone()})
        update_averages(averages, network, (0.1,), step)
    truth = mean_of(seen, discrete(0.1, 4))["weight"]
    assert torch.allclose(averages.state_dict()["0.weight"].double(), truth, atol=1e-6)


def test_a_lost_snapshot_is_missed(store: ImageStore, tmp_path: Path) -> None:
    plan = plan_of(store)
    run, state, _ = trained(store, plan, tmp_path / "runs")
    snapshot_path(run.folder / "ema", 0.1, 9).unlink()
    with pytest.raises(DiffctlError, match=r"0\.1-000000009\.safetensors is gone: `diffctl run --fresh`"):
        published(run, plan, state, tmp_path / "ema")
    assert not (tmp_path / "ema").exists()


def test_snapshots_of_two_trainings_or_of_none_are_refused(store: ImageStore, tmp_path: Path) -> None:
    for seed in (0, 1):
        plan = plan_of(store, seed=seed, steps=3)
        run, state, _ = trained(store, plan, tmp_path / "runs")
        published(run, plan, state, tmp_path / f"ema{seed}")
    other = snapshot_path(tmp_path / "ema1", 0.1, 3)
    other.rename(snapshot_path(tmp_path / "ema0", 0.15, 3))
    with pytest.raises(UsageError, match="are of two trainings"):
        Snapshots.of(tmp_path / "ema0")
    with pytest.raises(UsageError, match="has no snapshots of averages"):
        Snapshots.of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("averages", "said"),
    [
        ({"widths": [0.3], "every": 1}, "widths"),
        ({"widths": [], "every": 1}, "widths"),
        ({"widths": [0.1, 0.1], "every": 1}, "each value may stand once"),
        ({"widths": [0.1]}, "every"),
        (
            {"every": 10},
            "makes 400 snapshots of a width in 4,000 steps, and 256 are the most: raise it to 16",
        ),
    ],
)
def test_impossible_averages_are_refused(averages: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(params(train={"steps": 4000, "averages": averages}), "test")
