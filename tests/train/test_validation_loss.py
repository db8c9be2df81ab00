"""The validation loss: fixed draws, closed form of its parts, and no effect on the training."""

import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.images.store import ImageStore
from diffusion.model.precision import autocast
from diffusion.process.denoiser import Condition
from diffusion.process.losses import training_losses
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import build_process
from diffusion.system.errors import DiffctlWarning, Interrupted
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.initial_state import new_state
from diffusion.train.loop import Diverged
from diffusion.train.observers import Observer
from diffusion.train.optimizers.lr_schedule import ConstantLR
from diffusion.train.plan import DenoiserPlan, TrainPlan, changed_loss, training_fingerprint
from diffusion.train.train_config import BAND_NAMES, CURVE_ROWS, VALIDATION_SHARE, TrainConfig
from diffusion.train.train_state import TrainState, band_sums, with_band_means
from diffusion.train.validation_loss import ValidationLoss, add_to_history, write_loss_curve
from tests.helpers import trainings
from tests.helpers.trainings import CPU, Recorder, run


def plan_of(store: ImageStore, model: dict[str, Any] | None = None, **settings: Any) -> DenoiserPlan:
    train = {"val_every": 4, "val_images": 20, **settings}
    return trainings.plan_of(store, train=train, model=model or {})


def trained(
    store: ImageStore, plan: TrainPlan, state: TrainState | None = None, stop_at: int | None = None
) -> TrainState:
    state, observer, heldout = state or new_state(plan, CPU), Observer(), ValidationLoss(plan, store)
    observer.validate = heldout.losses  # type: ignore[method-assign]
    with suppress(Interrupted):
        run(state, store, stop_at=stop_at, observer=observer)
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_loss_is_the_mean_over_its_fixed_draws(store: ImageStore, precision: str) -> None:
    """The oracle computes all images in one batch, with torch's own calls."""
    plan = plan_of(store, {"dropout": 0.3}, precision=precision)
    state = new_state(plan, CPU)
    torch.nn.init.normal_(state.ema.head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore
    found = ValidationLoss(plan, store).losses(state, state.network.eval(), state.ema)
    rows = torch.randperm(64, generator=counter_generator("held-out images"))[:20]
    x_0 = torch.from_numpy(store.images[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    noise, t = torch.empty_like(x_0), torch.empty(20, dtype=torch.int64)
    for place in range(20):
        source = counter_generator("held-out draws", place)
        t[place] = int((place + torch.rand(1, dtype=torch.float64, generator=source)) * 1000 / 20)
        noise[place] = torch.randn(1, 8, 8, generator=source)
    assert [int((t // 250 == quarter).sum()) for quarter in range(4)] == [5] * 4
    assert store.labels is not None
    condition = Condition(20, torch.from_numpy(store.labels[rows.numpy()]))
    with torch.no_grad():
        network = autocast(state.ema, plan.precision)
        losses = training_losses(network, build_process(plan.process), x_0, t, noise, condition)
    for name in ("loss", "mse", "vlb"):
        assert found[name] == pytest.approx(float(losses[name].mean()), rel=1e-5)
    log_snr = 2 * build_process(plan.process).log_snr(t)
    inside = [log_snr > 3, (log_snr > 0) & (log_snr <= 3), (log_snr > -3) & (log_snr <= 0), log_snr <= -3]
    for name, band in zip(BAND_NAMES, inside, strict=True):
        assert found[name] == pytest.approx(float(losses["loss"][band].mean()), rel=1e-5)
    assert found["raw_loss"] != found["loss"]


@pytest.mark.parametrize("loss", ["contrastive", "dispersive"])
def test_a_loss_of_the_whole_batch_is_validated_in_whole_batches(store: ImageStore, loss: str) -> None:
    """Two batches of eight have t of every eighth of the range, and four of 20 images are left out."""
    found: list[dict[str, float]] = []
    times: list[torch.Tensor] = []
    for microbatch in ("auto", 8):
        train = {"batch_size": 8, "val_images": 20, "microbatch": microbatch}
        plan = trainings.plan_of(store, process={"loss": loss, "variance": "small"}, train=train)
        state = new_state(plan, CPU)
        state.objective.register_forward_pre_hook(lambda module, given: times.append(given[1].t))
        found.append(ValidationLoss(plan, store).losses(state, state.network.eval(), state.ema))
    assert found[0] == found[1]
    assert [(t // 125).tolist() for t in times] == [[*range(8)]] * 8


@pytest.mark.slow
def test_validation_loss_does_not_change_the_training(store: ImageStore) -> None:
    model = {"dropout": 0.3}
    plan = plan_of(store, model)
    whole = trained(store, plan)
    for changes in ({"val_every": None}, {"val_every": 3, "val_images": 7}):
        other = plan_of(store, model, **changes)
        assert training_fingerprint(other) == training_fingerprint(plan)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        state = trained(store, other)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(value, whole.tensors()[name]) for name, value in state.tensors().items())


def test_validation_loss_is_in_the_curve_and_survives_a_resume(store: ImageStore, tmp_path: Path) -> None:
    plan = plan_of(store)
    whole = trained(store, plan)
    assert [row["step"] for row in whole.history if "val_loss" in row] == [4, 8, 12]
    assert [row["step"] for row in whole.history] == [3, 4, 6, 8, 9, 12]
    first, second = trained(store, plan, stop_at=6), new_state(plan, CPU)
    second.restore(first.saved())
    assert trained(store, plan, second).history == whole.history
    write_loss_curve(tmp_path / "loss.csv", whole.history)
    names, *rows = (line.split(",") for line in (tmp_path / "loss.csv").read_text().splitlines())
    assert names[:2] == ["step", "loss"]
    assert {"val_loss", "val_vlb", "val_raw_mse", f"val_raw_{BAND_NAMES[3]}"} < set(names)
    place = names.index("val_loss")
    assert [math.isnan(float(row[place])) for row in rows] == [True, False, True, False, True, False]
    assert [math.isnan(float(row[1])) for row in rows] == [False, True, False, True, False, False]


@pytest.mark.parametrize(("batch", "images"), [(1, 5000), (16, 4), (64, 256), (128, 5000), (2048, 4)])
def test_by_default_validation_takes_less_than_two_percent(batch: int, images: int) -> None:
    """An image takes two forward passes here and the equivalent of three in a training step."""
    steps = 100_000
    config = TrainConfig(steps=steps, batch_size=batch, lr=ConstantLR(rate=1), val_images=images)
    times = sum(config.is_validated(step) for step in range(1, steps))
    assert times * images * 2 <= VALIDATION_SHARE * steps * batch * 3
    assert times <= CURVE_ROWS


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ([1.0, 2.0], False),
        ([1.0, 1.1, 1.1, 1.1], True),
        ([1.0, 1.1, 1.1, 1.01], False),
        ([2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5], True),
        ([1.3, 1.2, 1.1, 1.0], False),
    ],
)
def test_three_losses_above_the_minimum_are_reported_once(losses: list[float], rises: bool) -> None:
    history: list[dict[str, float]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, loss in enumerate(losses, start=1):
            add_to_history(history, 10 * step, {"loss": loss})
    add_to_history(history, 1000, {})
    assert [row["step"] for row in history] == [10 * step for step in range(1, len(losses) + 1)]
    assert len(caught) == rises
    if len(losses) > 4:
        assert "from 1 after step 20 to 1.3 after step 50" in str(caught[0].message)


def test_losses_that_are_not_finite_are_left_out_and_reported_once() -> None:
    """The rest of the curve is judged as if they were not measured."""
    history: list[dict[str, float]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        losses = [1.0, math.nan, 1.1, math.inf, 1.2, -math.inf, 1.3, math.nan, math.nan]
        for step, loss in enumerate(losses, start=1):
            add_to_history(history, step, {"loss": loss, "raw_loss": math.nan if step in (1, 9) else 2.0})
    assert [row.get("val_loss") for row in history] == [1.0, None, 1.1, None, 1.2, None, 1.3, None]
    assert ["val_raw_loss" in row for row in history] == [False, *[True] * 7]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "NaN or infinite" in messages[0]
    assert "risen from 1 after step 1 to 1.3 after step 7" in messages[1]


def test_a_training_with_infinite_validation_losses_is_saved_and_ends_as_diverged(store: ImageStore) -> None:
    plan = plan_of(store, val_every=1, lr=1.0, grad_clip=None, save_every=1)
    saved: list[SavedState] = []
    state, observer = new_state(plan, CPU), Recorder(saved.append)
    observer.validate = lambda *_: {"loss": math.inf, "raw_loss": math.nan}  # type: ignore[method-assign]
    calls = iter(range(1000))
    state.network.register_forward_hook(lambda *given: given[2] * (math.nan if next(calls) > 1 else 1.0))
    with pytest.warns(DiffctlWarning, match="NaN or infinite"), pytest.raises(Diverged):
        run(state, store, observer=observer)
    assert [one.values.step for one in saved] == [*range(1, 8)]
    assert saved[-1].values.skipped == 5


def test_the_mean_of_a_window_is_over_images_not_steps() -> None:
    first = band_sums(torch.tensor([1.0, 2.0, 3.0, 8.0]), torch.tensor([4.0, 1.6, 1.6, -9.0]))
    second = band_sums(torch.tensor([6.0, 4.0]), torch.tensor([1.6, -1.0]))
    totals = {name: (first[name] + second[name]).item() / 2 for name in first} | {"loss": 0.5}
    means = dict(zip(BAND_NAMES, [3.0, None, 4.0, 8.0], strict=True))
    assert with_band_means(totals) == {"loss": 0.5, **{k: v for k, v in means.items() if v}}


@pytest.mark.parametrize("change", [{"class_cond": False}, {"low_res": 2}, {"cond_noise": 0.1}])
def test_losses_of_other_conditions_are_not_compared(store: ImageStore, change: dict[str, Any]) -> None:
    plan, other = (plan_of(store, {"low_res": 4, **one}, p_uncond=0.0) for one in ({}, change))
    (name,) = change
    assert str(changed_loss(plan, other)).startswith(f"model.{name} ")
    assert changed_loss(plan, plan) is None
