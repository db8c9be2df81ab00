"""An objective with parameters and inner outputs: its training in parts, in processes, and its limits."""

import math
import pickle

import pytest
import torch

from diffusion.system.errors import UsageError
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.train_step import accumulate_gradients
from diffusion.train.validation_loss import ValidationLoss
from tests.helpers.objectives import LEARNED, register
from tests.helpers.process_pair import CHANGES, SHARDED, Job, alone, assert_close, trained_in_turn
from tests.helpers.trainings import CPU, Killed, assert_same, plan_of, run, run_in, run_until
from tests.train.test_gradients import passes_of

FP32 = {"precision": "fp32", "batch_size": 8}


@pytest.mark.slow
def test_resume_is_bitwise_with_parameters_and_their_average(store, tmp_path, monkeypatch):
    register(monkeypatch)
    plan = plan_of(store, **LEARNED, train={"save_every": 3, "optimizer": "muon"})
    whole = new_state(plan, CPU)
    seen = run(whole, store).seen
    run_in(store, plan, tmp_path, stop_at=5, error=Killed())
    _, resumed, begun = run_in(store, plan, tmp_path)
    assert begun == 3
    assert_same(resumed, whole)
    raw, ema = (whole.tensors()[f"{name}.log_variance"] for name in ("objective", "ema_objective"))
    assert raw.abs().max() > ema.abs().max() > 0
    assert {"size", "objective_grad_norm"} <= seen[-1][1].keys()
    losses = ValidationLoss(plan, store).losses(whole, whole.network.eval(), whole.ema)
    u, raw_u = float(ema[0]), float(raw[0])
    for prefix, value in (("", u), ("raw_", raw_u)):
        found = {name: losses[f"{prefix}{name}"] for name in ("loss", "mse", "size")}
        scale = float((ema if value == u else raw)[1])
        expected = found["mse"] / math.exp(value) + value + (scale**2 + 0.01) * found["size"]
        assert found["loss"] == pytest.approx(expected, rel=1e-4)


def test_micro_batches_have_the_gradient_of_the_whole_batch(store, monkeypatch):
    register(monkeypatch)
    found = []
    for microbatch in (None, 3):
        state = new_state(plan_of(store, **LEARNED, train={**FP32, "microbatch": microbatch}), CPU)
        run_until(state, store, 2)  # the network's output is zero at first
        batch = draw_batch(state.plan, state.time_sampler, ImageLoader(store, CPU), 2)
        losses, *_ = accumulate_gradients(passes_of(state), batch, 2)
        middle = state.network.middle[0].conv_in.weight.grad  # of the inner output too
        found.append([state.objective.log_variance.grad, middle, losses["size"]])
    for ours, theirs in zip(*found, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_nan_steps_leave_the_objectives_parameters_alone(store, monkeypatch):
    register(monkeypatch)
    state = new_state(plan_of(store, **LEARNED), CPU)
    run_until(state, store, 3)
    pickle.dumps(state.network)  # no hook of the training is left on it
    before = {name: value.clone() for name, value in state.tensors().items() if "objective" in name}
    hook = state.objective.log_variance.register_hook(lambda gradient: gradient * math.nan)
    run_until(state, store, 5)
    hook.remove()
    after = state.tensors()
    assert state.skipped == 2
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_objective_of_the_whole_batch_refuses_parts(store, monkeypatch):
    register(monkeypatch, whole_batch=True)
    with pytest.raises(
        UsageError, match=r"process\.loss learned needs the whole batch: set train\.microbatch"
    ):
        plan_of(store, **LEARNED, train={"microbatch": 2})
    with pytest.raises(UsageError, match=r"set train\.devices to 1"):
        plan_of(store, **LEARNED, train={"devices": 2})
    state = new_state(plan_of(store, **LEARNED, train=FP32), CPU)
    passes = passes_of(state)
    assert passes.microbatch == 8
    with pytest.raises(UsageError, match=r"set train\.devices to 1"):
        type(passes)(state.plan, state.network, state.objective, ProcessGroup(CPU, 0, 2))


def test_an_unknown_inner_output_is_refused(store, monkeypatch):
    register(monkeypatch)
    state = new_state(plan_of(store, **LEARNED), CPU)
    state.objective.features = ("end",)
    with pytest.raises(UsageError, match=r"needs the module 'end' of the network: it has "):
        passes_of(state)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CHANGES, SHARDED], ids=["unsharded", "sharded"])
def test_two_processes_train_like_one(digits_store, tmp_path, monkeypatch, settings):
    register(monkeypatch)
    changes = {**settings, **LEARNED}
    (both,) = trained_in_turn(digits_store, 2, [Job(tmp_path / "two", changes)])
    one = alone(digits_store, changes)
    assert_close(both, one)
    for name in ("objective.log_variance", "ema_objective.log_variance"):
        torch.testing.assert_close(both.tensors[name], one.tensors[name], rtol=1e-3, atol=1e-6)
