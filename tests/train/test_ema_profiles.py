"""Power-function averages of a real training: values, snapshots, and no effect on the model."""

from contextlib import nullcontext
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
from diffusion.train.checkpoint.run_dir import RunDir, publish_snapshots
from diffusion.train.initial_state import new_state
from diffusion.train.observers import Observer
from diffusion.train.plan import DenoiserPlan, plan_artefact, training_fingerprint
from diffusion.train.train_state import TrainState
from diffusion.train.train_step import lerp_tensors
from diffusion.train.trainer import Trainer
from tests.conftest import params
from tests.helpers import trainings
from tests.helpers.trainings import CPU, Killed, run, run_in
from tests.model.test_posthoc_ema import discrete_profile

STEPS, EVERY = 24, 3
WIDTHS = [0.05, 0.1, 0.2]
AVERAGES: dict[str, Any] = {"sigma_rel": WIDTHS, "every": EVERY}


def plan_of(store: ImageStore, averages: dict[str, Any] | None = AVERAGES, **settings: Any) -> DenoiserPlan:
    usual = {"steps": STEPS, "lr": 0.002, "save_every": 6, "log_every": 4}
    return trainings.plan_of(store, train={**usual, "ema_profiles": averages, **settings})


def published(run: RunDir, plan: DenoiserPlan, state: TrainState, out: Path) -> dict[str, str]:
    """Publish the snapshots; return their digests by name."""
    publish_snapshots(run.folder, out, plan.train, plan_artefact(plan, state.code))
    return {path.name: read_artefact(path).model_sha256 for path in out.iterdir()}


def model_bytes(plan: DenoiserPlan, state: TrainState, folder: Path) -> bytes:
    path = folder / "model.safetensors"
    save_artefact(path, state.ema.state_dict(), plan_artefact(plan, state.code))
    return path.read_bytes()


def flat(weights: dict[str, Tensor]) -> Tensor:
    """Return all weights in one row, float64, in the order of their names."""
    return torch.cat([weights[name].detach().double().flatten() for name in sorted(weights)])


def mean_of(weights: list[Tensor], width: float) -> Tensor:
    """Return the average of rows of weights after each step."""
    return torch.tensor(discrete_profile(width, len(weights)), dtype=torch.float64) @ torch.stack(weights)


@pytest.mark.slow
def test_averages_are_sums_of_the_weights_and_any_other_width_follows_from_two(store, tmp_path):
    plan = plan_of(store)
    folder, state, _ = run_in(store, plan, tmp_path / "runs")
    again, weights, observer = new_state(plan, CPU), [], Observer()
    observer.progress = lambda *_: weights.append(flat(again.network.state_dict()))
    run(again, store, observer=observer)
    published(folder, plan, state, tmp_path / "ema")
    for width in WIDTHS:
        tracked, artefact = load_model(snapshot_path(tmp_path / "ema", width, STEPS))
        assert (artefact.ema_sigma_rel, artefact.step) == (width, STEPS)
        assert (flat(tracked.state_dict()) - mean_of(weights, width)).norm() < 1e-4
    for path in (tmp_path / "ema").glob("0.2-*"):
        path.unlink()
    snapshots = Snapshots.of(tmp_path / "ema")
    assert snapshots.sigma_rels == [0.05, 0.1]
    made, artefact = snapshots.reconstruct(0.2)
    error = snapshots.fit(0.2).error
    assert 0 < error < 0.1
    widest, narrow = mean_of(weights, 0.2), mean_of(weights, 0.1)
    assert (flat(made) - widest).norm() < error * (narrow - widest).norm()
    assert artefact.ema_sigma_rel == 0.2
    assert artefact.model_sha256 != snapshots.last.model_sha256


@pytest.mark.slow
def test_averages_do_not_change_the_model_and_make_another_training(store, tmp_path):
    without, plan = plan_of(store, None), plan_of(store)
    _, plain, _ = run_in(store, without, tmp_path / "runs")
    folder, state, begun = run_in(store, plan, tmp_path / "runs")
    assert begun == 0, "an average must be tracked from the first step"
    assert training_fingerprint(plan) != training_fingerprint(without)
    assert "train.ema_profiles" in str(folder.changes())
    assert model_bytes(plan, state, tmp_path) == model_bytes(without, plain, tmp_path)
    assert published(folder, without, plain, tmp_path / "none") == {}


@pytest.mark.slow
def test_a_training_resumes_without_its_averages(store, tmp_path):
    run_in(store, plan_of(store), tmp_path / "runs", 14, Killed())
    without = plan_of(store, None)
    _, state, begun = run_in(store, without, tmp_path / "runs")
    assert begun == 12
    _, alone, _ = run_in(store, without, tmp_path / "alone")
    assert model_bytes(without, state, tmp_path) == model_bytes(without, alone, tmp_path)


@pytest.fixture(scope="module")
def wanted(digits_template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the snapshots of a training that nothing interrupted."""
    folder, store = tmp_path_factory.mktemp("whole"), open_store(digits_template)
    run, state, _ = run_in(store, plan_of(store), folder / "runs")
    found = published(run, state.plan, state, folder / "ema")
    assert len(found) == 3 * STEPS // EVERY
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "kill_at", "resumed_at", "keep"),
    [({}, 7, 6, False), ({}, 12, 12, False), ({"steps": 13}, None, 13, False), ({}, 14, 12, True)],
    ids=["killed between saves", "killed after a save", "a longer training", "other code"],
)
def test_a_resumed_training_has_the_same_snapshots(store, tmp_path, wanted, first, kill_at, resumed_at, keep):
    plan, before = plan_of(store), plan_of(store, **first)
    if keep:
        edited = plan.code[0].model_copy(update={"digest": "0" * 16})
        before = before.model_copy(update={"code": (edited,)})
    run_in(store, before, tmp_path / "runs", kill_at, Killed())
    folder, state, begun = run_in(store, plan, tmp_path / "runs", keep=keep)
    assert begun == resumed_at
    assert [one.digest for one in state.code] == [one.digest for one in (*before.code[:keep], *plan.code)]
    assert published(folder, plan, state, tmp_path / "ema") == wanted


def test_a_missing_snapshot_does_not_prevent_the_model_file(store, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.train.trainer.save_snapshots", lambda *_: None)
    plan, model = plan_of(store, steps=4), tmp_path / "model.safetensors"
    places = tmp_path / "runs", tmp_path / "loss.csv", model, tmp_path / "ema"
    with pytest.raises(DiffctlError, match=r"is missing: .* `train\.ema_profiles: null`"):
        Trainer(plan, store, [], print, *places).lead(lambda run, stop: nullcontext(Observer()))
    assert read_artefact(model).step == 4


def test_too_many_snapshots_are_refused_with_the_shortest_possible_interval():
    with pytest.raises(UsageError, match="raise it to 16"):
        parse(params(train={"steps": 4000, "ema_profiles": {"every": 10}}), "test")


@pytest.mark.parametrize("part", [0.0, 0.1])
def test_gpu_update_equals_a_lerp(part):
    averages, weights = ([torch.randn(3, 1 + number % 5) for number in range(20)] for _ in range(2))
    before, step = [one.clone() for one in averages], torch.tensor(part)
    lerp_tensors(averages, weights, step)
    for one, was, new in zip(averages, before, weights, strict=True):
        assert torch.allclose(one, torch.lerp(was, new, step), rtol=1e-6, atol=1e-6)
        assert part or torch.equal(one, was)
