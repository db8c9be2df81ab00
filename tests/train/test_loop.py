"""Training in one process: exact resume, non-finite steps, stops, and the training's fingerprint."""

import math
import os
import warnings
from contextlib import suppress

import pytest
import torch

from diffusion.images.store import ImageStore
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.initial_state import new_state
from diffusion.train.loop import Diverged, tf32
from diffusion.train.observers import ThreadMonitor
from diffusion.train.plan import plan_artefact, training_fingerprint
from flows.dvc_stage import StageFailed, failure
from flows.stage_outcome import StageOutcome
from tests.helpers.process_pair import SMALL_DIT
from tests.helpers.trainings import CPU, assert_same, plan_of, restore, run, run_until


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        pytest.param({}, 1, id="first step"),
        pytest.param({}, 11, id="last but one"),
        pytest.param(
            {"process": {"t_sampler": "loss-aware", "loss": "vlb", "timesteps": 4}}, 5, id="loss-aware"
        ),
        pytest.param(
            {"process": {"schedule": "edm", "stratified": True}, "train": {"optimizer": "radam"}}, 5, id="edm"
        ),
        pytest.param({"model": {**SMALL_DIT, "dropout": 0.2}, "train": {"optimizer": "muon"}}, 5, id="dit"),
        pytest.param({"train": {"augment": {"probability": 0.5}, "precision": "bf16"}}, 5, id="augment"),
        pytest.param({"model": {"low_res": 4, "cond_noise": 0.5}, "data": {"flip": True}}, 5, id="low-res"),
    ],
)
def test_resume_is_bitwise_equal(store, tmp_path, at, changes):
    plan = plan_of(store, **changes)
    uninterrupted = new_state(plan, CPU)
    seen = run(uninterrupted, store).seen
    with open_run(tmp_path, "a") as folder:
        run_until(new_state(plan, CPU), store, at, folder.writer.save)
        resumed = new_state(plan, CPU)
        restore(folder, resumed)
        assert resumed.step == at
        torch.manual_seed(123)  # no draw may come from the global generator
        rest = run(resumed, store).seen
    assert_same(uninterrupted, resumed)
    assert rest == [(step, values) for step, values in seen if step > at]


def test_logged_values_are_means_over_the_finite_steps(store):
    state = new_state(plan_of(store), CPU)
    for loss in (1.0, math.nan, 4.0):
        state.record({"loss": loss, "mse": 2 * loss})
    assert (state.skipped, state.bad_in_a_row) == (1, 0)
    assert state.pop_means() == {"loss": 2.5, "mse": 5.0}
    assert state.pop_means() == {}


def test_state_records_code_and_torch_of_every_step(store):
    plan = plan_of(store)
    (own,) = plan.code
    state = new_state(plan, CPU)
    state.step = 4
    same = new_state(plan, CPU)
    same.restore(state.saved())
    assert (same.code, same.change_of_code()) == ([own], None)
    for now in ({"digest": "other"}, {"torch": "3.0"}):
        changed = own.model_copy(update=now)
        other = new_state(plan.model_copy(update={"code": (changed,)}), CPU)
        other.restore(state.saved())
        since = changed.model_copy(update={"step": 4})
        assert (other.code, other.change_of_code()) == ([own, since], (own, since))
        other.step = 6
        again = new_state(plan.model_copy(update={"code": (changed,)}), CPU)
        again.restore(other.saved())
        assert (again.code, again.change_of_code()) == ([own, since], None)
        assert plan_artefact(plan, again.code).code == (own, since)


@pytest.mark.parametrize(
    ("optimizer", "blind"), [("adamw", False), ("muon", False), ("adamw", True), ("radam", False)]
)
def test_nan_steps_change_no_tensor_and_end_the_training(store, monkeypatch, optimizer, blind):
    """A blind optimiser ignores found_inf, as the one on MPS does."""
    state = new_state(plan_of(store, train={"optimizer": optimizer}), CPU)
    run_until(state, store, 3)
    if blind:
        step = state.optimizer.step

        def step_blindly() -> None:
            del state.optimizer.found_inf
            step()

        monkeypatch.setattr(state.optimizer, "step", step_blindly)
        monkeypatch.setattr("diffusion.train.train_step.IGNORES_FOUND_INF", ("cpu",))
    before = {name: value.clone() for name, value in state.tensors().items()}
    assert {name.rpartition(".")[2] for name in before} >= {"step", "exp_avg", "exp_avg_sq"}
    state.network.register_forward_hook(lambda module, args, output: output * math.nan)
    saves: list[SavedState] = []
    with pytest.raises(DiffctlError, match="5 non-finite steps in a row, at step 8"):
        run(state, store, saves.append)
    assert (state.skipped, saves[-1].values.step) == (5, 8)
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())


@pytest.mark.parametrize(("precision", "advice"), [("fp32", "grad_clip"), ("bf16", "precision: fp32")])
def test_a_divergence_is_not_retried_and_its_advice_fits_the_precision(store, precision, advice):
    state = new_state(plan_of(store, train={"precision": precision}), CPU)
    state.network.register_forward_hook(lambda module, args, output: output * math.nan)
    with pytest.raises(DiffctlError, match=rf"lower train\.lr, or set train\.{advice};") as raised:
        run(state, store)
    outcome = StageOutcome(raised.value.kind, str(raised.value), raised.value.exit_code)
    error = failure("train", outcome, [])
    assert isinstance(error, StageFailed)
    assert (error.exit_code, error.retry) == (1, False)


def test_a_diverged_training_has_the_snapshot_of_its_last_step(store):
    state = new_state(plan_of(store, train={"ema_profiles": {"every": 5}}), CPU)
    state.network.register_forward_hook(lambda module, args, output: output * math.nan)
    saves: list[int] = []
    snapshots: list[int] = []
    with pytest.raises(Diverged, match="at step 5"):
        run(
            state,
            store,
            lambda saved: saves.append(saved.values.step),
            snapshot=lambda state, profiles: snapshots.append(state.step),
        )
    assert (saves[-1], snapshots) == (5, [5])


def test_a_single_nan_step_is_skipped(store):
    state = new_state(plan_of(store), CPU)
    calls = iter(range(1000))
    state.network.register_forward_hook(
        lambda module, args, output: output * (math.nan if next(calls) == 2 else 1.0)
    )
    seen = run(state, store).seen
    assert (state.step, state.skipped, state.bad_in_a_row) == (12, 1, 0)
    assert [values["skipped_steps"] for _, values in seen] == [1.0] * 4
    assert all(math.isfinite(value) for _, values in seen for value in values.values())


@pytest.mark.parametrize(
    ("threads", "cores", "load", "warns"),
    [
        (2, 0.3, 4.0, True),
        (8, 4.5, 1.1, True),
        (2, 1.9, 4.0, False),
        (1, 0.2, 4.0, False),
        (64, 5.0, 0.1, False),
    ],
)
def test_threads_that_wait_for_busy_cores_are_reported_once(monkeypatch, threads, cores, load, warns):
    wall = 0.0
    monkeypatch.setattr("time.monotonic", lambda: wall)
    monkeypatch.setattr("time.process_time", lambda: cores * wall)
    monkeypatch.setattr("os.getloadavg", lambda: (load * os.cpu_count(), 0, 0))
    monitor = ThreadMonitor(threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            wall += 0.2
            monitor.count_step()
    assert len(caught) == warns
    assert not warns or f"{threads} threads had {cores} cores" in str(caught[0].message)
    assert not warns or "OMP_NUM_THREADS=1" in str(caught[0].message)


@pytest.mark.parametrize("at", [0, 5])
def test_a_stop_saves_the_state_first(store, at):
    saves: list[int] = []
    with pytest.raises(Interrupted):
        run(new_state(plan_of(store), CPU), store, lambda saved: saves.append(saved.values.step), at)
    assert saves[-1] == at


def test_training_ends_at_the_last_step_with_a_preview_and_a_save(store, monkeypatch):
    saves, monitored = [], []
    monkeypatch.setattr(ThreadMonitor, "count_step", lambda monitor: monitored.append(monitor))
    observer = run(new_state(plan_of(store), CPU), store, lambda saved: saves.append(saved.values.step))
    assert saves == [4, 8, 12]
    assert len(monitored) == 12
    assert observer.previews == [6, 12]
    assert [step for step, _ in observer.seen] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"save_every": 3, "log_every": 1, "eval_every": 6}},
        {"train": {"devices": 1, "microbatch": 2, "compile": False, "shard": True}},
        {"model": {"gradient_checkpointing": True}},
        {"sample": {"seed": 5}},
    ],
)
def test_fingerprint_ignores_what_changes_no_result(store, changes):
    base, other = plan_of(store), plan_of(store, **changes)
    assert training_fingerprint(other) == training_fingerprint(base)
    assert plan_artefact(other).model_sha256 == plan_artefact(base).model_sha256 or "model" in changes


def test_fingerprint_depends_on_what_changes_a_result(store):
    train = [{"lr": 1e-3}, {"seed": 1}, {"steps": 13}, {"batch_size": 9}, {"ema_decay": 0.5}, {"tf32": False}]
    train += [{"weight_decay": 0.1}, {"precision": "fp32"}, {"precision": "bf16"}]
    sections = {"process": {"timesteps": 999}, "model": {"channels": 16}, "data": {"flip": True}}
    plans = [plan_of(store, train={"precision": "fp32", **one}) for one in train]
    plans += [plan_of(store, train={"precision": "fp32"}, **{name: one}) for name, one in sections.items()]
    other = ImageStore(store.path, store.images, store.labels, {**store.meta, "digest": "another"})
    plans.append(plan_of(other, train={"precision": "fp32"}))
    assert len({training_fingerprint(plan) for plan in plans}) == len(plans)


def test_ema_is_its_closed_form(store):
    """Three steps written out: at step k the decay is d_k = min(d, (1+k)/(10+k))."""
    state = new_state(plan_of(store, train={"ema_decay": 0.15}), CPU)
    seen = [weights_of(state.network)]
    for step in (1, 2, 3):
        run_until(state, store, step)
        seen.append(weights_of(state.network))
    d = [0.1, 0.15, 0.15]
    shares = [d[0] * d[1] * d[2], (1 - d[0]) * d[1] * d[2], (1 - d[1]) * d[2], 1 - d[2]]
    expected = torch.stack([share * each for share, each in zip(shares, seen, strict=True)]).sum(0)
    assert torch.allclose(weights_of(state.ema), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(weights_of(state.network), expected, rtol=0, atol=1e-5)


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    """Return all weights in one row, float64."""
    return torch.cat([value.detach().double().flatten() for value in network.parameters()])


@pytest.mark.parametrize("is_allowed", [True, False])
def test_tf32_of_a_training_ends_with_it(is_allowed):
    def flags():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    with suppress(Diverged), tf32(is_allowed, torch.device("cuda")):
        assert flags() == ("high" if is_allowed else "highest", is_allowed)
        raise Diverged
    assert flags() == before
