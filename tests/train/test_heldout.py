"""The held-out loss: of fixed draws, of what its parts say, and of no consequence for the training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import ImageStore, open_store
from diffusion.model.precision import autocast
from diffusion.process.condition import Condition
from diffusion.process.losses import training_losses
from diffusion.process.noise import counter_generator
from diffusion.process.process_registry import build_process
from diffusion.system.errors import DiffctlWarning, Interrupted
from diffusion.train.classifier_plan import plan_classifier
from diffusion.train.config import CURVE_ROWS, HELDOUT_SHARE, ClassifierSections, TrainConfig
from diffusion.train.course import Constant
from diffusion.train.distributed import ProcessGroup
from diffusion.train.heldout import HeldOut, begins_to_rise, note
from diffusion.train.identity import TrainPlan, plan_training, training_fingerprint
from diffusion.train.loop import Silent, TrainState, new_state, train
from diffusion.train.run_folder import write_loss_curve
from tests.conftest import params

CPU = torch.device("cpu")


class Holding(Silent):
    """An observer that measures."""

    def __init__(self, heldout: HeldOut) -> None:
        self.heldout = heldout

    def hold_out(self, step: int, network: torch.nn.Module, ema: torch.nn.Module) -> dict[str, float]:
        return self.heldout.losses(network, ema)


@pytest.fixture
def store(digits_store: Path) -> ImageStore:
    return open_store(digits_store)


def plan_of(store: ImageStore, model: dict[str, Any] | None = None, **settings: Any) -> TrainPlan:
    changes = {"heldout_every": 4, "heldout_images": 20, **settings}
    return plan_training(parse(params(train=changes, model=model or {}), "test"), store.meta, CPU)


def trained(store: ImageStore, plan: TrainPlan, state: TrainState | None = None, stop: int = 0) -> TrainState:
    state = state or new_state(plan, CPU)

    def check_stop() -> None:
        if stop and state.step == stop:
            raise Interrupted("stopped", 15)

    try:
        train(state, store, ProcessGroup(CPU), Holding(HeldOut(plan, store)), lambda state: None, check_stop)
    except Interrupted:
        assert state.step == stop
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_mean_of_the_losses_at_draws_that_are_known(store: ImageStore, precision: str) -> None:
    """An oracle: all images in one batch, by torch's own calls."""
    plan = plan_of(store, {"dropout": 0.3}, precision=precision)
    state = new_state(plan, CPU)
    torch.nn.init.normal_(state.ema.head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore
    found = HeldOut(plan, store).losses(state.network, state.ema)
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
    for quarter in range(4):
        of_quarter = losses["loss"][t // 250 == quarter].mean()
        assert found[f"loss_q{quarter}"] == pytest.approx(float(of_quarter), rel=1e-5)
    assert found["raw_loss"] != found["loss"]
    assert state.network.training
    assert not state.ema.training


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"dropout": 0.3}], ids=["plain", "dropout"])
def test_nothing_of_a_training_hangs_on_it(store: ImageStore, model: dict[str, Any]) -> None:
    """Neither whether nor how often it is measured, nor by how many images."""
    others = ({"heldout_every": 3}, {"heldout_every": None}, {"heldout_images": 7})
    plan = plan_of(store, model)
    whole = trained(store, plan)
    for changes in others:
        other = plan_of(store, model, **changes)
        assert training_fingerprint(other) == training_fingerprint(plan)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        state = trained(store, other)
        assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from the global generator"
        assert all(torch.equal(value, whole.tensors()[name]) for name, value in state.tensors().items())


def test_it_joins_the_curve_and_a_resumed_training_has_the_same(store: ImageStore, tmp_path: Path) -> None:
    plan = plan_of(store)
    whole = trained(store, plan)
    assert [row["step"] for row in whole.history if "heldout_loss" in row] == [4, 8, 12]
    assert [row["step"] for row in whole.history] == [3, 4, 6, 8, 9, 12]
    first, second = trained(store, plan, stop=6), new_state(plan, CPU)
    second.restore(first.saved())
    assert trained(store, plan, second).history == whole.history
    write_loss_curve(tmp_path / "loss.csv", whole.history)
    names, *rows = (line.split(",") for line in (tmp_path / "loss.csv").read_text().splitlines())
    assert names[:2] == ["step", "loss"]
    assert {"heldout_loss", "heldout_vlb", "heldout_raw_mse", "heldout_raw_loss_q3"} < set(names)
    place = names.index("heldout_loss")
    assert [math.isnan(float(row[place])) for row in rows] == [True, False, True, False, True, False]
    assert [math.isnan(float(row[1])) for row in rows] == [False, True, False, True, False, False]


def test_a_classifier_has_it_too(store: ImageStore) -> None:
    values = params()
    section = {
        "model": {"channels": 8, "channel_mult": [1, 2], "attention": [4], "head_channels": 8},
        "train": {"steps": 4, "batch_size": 8, "lr": 0.01, "heldout_every": 2, "heldout_images": 16},
    }
    sections = ClassifierSections(data=values["data"], process=values["process"], classifier=section)
    plan = plan_classifier(sections, store.meta, CPU)
    rows = [row for row in trained(store, plan).history if "heldout_loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 <= rows[0]["heldout_accuracy"] <= 1


@pytest.mark.parametrize("batch", [1, 16, 64, 128, 2048])
@pytest.mark.parametrize("images", [4, 256, 5000])
def test_by_default_it_takes_less_than_two_percent(batch: int, images: int) -> None:
    """In passes of an image: two, where a training step takes three for each of its own."""
    steps = 100_000
    config = TrainConfig(steps=steps, batch_size=batch, lr=Constant(rate=1), heldout_images=images)
    times = sum(config.is_held_out(step) for step in range(1, steps))
    assert times * images * 2 <= HELDOUT_SHARE * steps * batch * 3
    assert times <= CURVE_ROWS


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ([], False),
        ([1.0, 2.0], False),
        ([1.0, 1.1, 1.1, 1.1], True),
        ([1.0, 1.1, 1.1, 1.01], False),
        ([2.0, 1.0, 1.1, 1.2, 1.3], True),
        ([2.0, 1.0, 1.1, 1.2, 1.3, 1.4], False),  # which was told
        ([1.3, 1.2, 1.1, 1.0], False),
        ([1.0, math.nan, math.nan, math.nan], False),
    ],
)
def test_a_rise_is_seen_when_it_has_lasted(losses: list[float], rises: bool) -> None:
    assert begins_to_rise(losses) == rises


def test_a_rise_is_told_once() -> None:
    history: list[dict[str, float]] = []
    for step, loss in enumerate((0.5, 0.4, 0.5, 0.6), start=1):
        note(history, 10 * step, {"loss": loss})
    with pytest.warns(DiffctlWarning, match=r"has risen from 0\.4 after step 20 to 0\.7 after step 50: "):
        note(history, 50, {"loss": 0.7})
    note(history, 60, {"loss": 0.8})
    note(history, 70, {})
    assert [row["step"] for row in history] == [10, 20, 30, 40, 50, 60]
