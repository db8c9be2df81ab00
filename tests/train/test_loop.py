"""Training in one process: counter-based randomness, exact resume, non-finite steps, stops."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import ImageStore, open_store
from diffusion.system.errors import DiffctlError, DiffctlWarning, Interrupted
from diffusion.train.batch import Batch
from diffusion.train.batch import draw_batch as draw
from diffusion.train.distributed import ProcessGroup
from diffusion.train.ema import warmed_decay
from diffusion.train.identity import TrainPlan, plan_training, result_of, training_fingerprint
from diffusion.train.loader import Batches
from diffusion.train.loop import TrainState, new_state, train
from diffusion.train.run_folder import open_run, write_loss_curve
from tests.conftest import params

CPU = torch.device("cpu")


class Quiet:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.previews: list[int] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.seen.append((step, values))

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        pass

    def hold_out(self, step: int, network: torch.nn.Module, ema: torch.nn.Module) -> dict[str, float]:
        return {}

    def preview(self, step: int, network: torch.nn.Module, ema: torch.nn.Module) -> None:
        self.previews.append(step)


def plan_of(store: ImageStore, **changes: dict[str, Any]) -> TrainPlan:
    return plan_training(parse(params(**changes), "test"), store.meta, CPU)


def draw_batch(state: TrainState, store: ImageStore) -> Batch:
    return draw(state.plan, state.timesteps, Batches(store, CPU), state.step)


def run(
    state: TrainState, store: ImageStore, saves: list[Any] | None = None, stop_at: int | None = None
) -> Quiet:
    observer = Quiet()

    def save(state: TrainState) -> None:
        if saves is not None:
            saves.append((state.step, {k: v.clone() for k, v in state.tensors().items()}, state.values()))

    def check_stop() -> None:
        if stop_at is not None and state.step >= stop_at:
            raise Interrupted("stopped", 15)

    train(state, store, ProcessGroup(CPU), observer, save, check_stop)
    return observer


def assert_same(a: TrainState, b: TrainState) -> None:
    ours, theirs = a.tensors(), b.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.values() == b.values()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"dropout": 0.2}},
        {"process": {"t_sampler": "loss-aware", "loss": "vlb", "timesteps": 4}},
        {"train": {"optimizer": "muon"}},
    ],
    ids=["plain", "dropout", "loss-aware", "muon"],
)
@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_resumed_training_is_the_uninterrupted_one(
    digits_store: Path, tmp_path: Path, at: int, changes: dict[str, Any]
) -> None:
    store = open_store(digits_store)
    plan = plan_of(store, **changes)
    whole = new_state(plan, CPU)
    seen = run(whole, store).seen
    with open_run(tmp_path, "a") as folder:
        first = new_state(plan, CPU)
        with pytest.raises(Interrupted):
            run_saving(first, store, folder.save, at)
        second = new_state(plan, CPU)
        assert folder.restore(second)
        assert second.step == at
        torch.manual_seed(123)  # nothing may depend on the global generator
        rest = run(second, store).seen
    assert_same(whole, second)
    assert rest == [(step, values) for step, values in seen if step > at]


def test_the_code_and_torch_of_every_step_are_known(digits_store: Path, tmp_path: Path) -> None:
    plan = plan_of(open_store(digits_store))
    (own,) = plan.code
    state = new_state(plan, CPU)
    state.step = 4
    same = new_state(plan, CPU)
    same.restore(state.saved())
    assert (same.code, same.change_of_code()) == ([own], None)
    for now in ({"digest": "other"}, {"torch": "3.0"}):
        changed = own.model_copy(update=now)
        other = new_state(plan.model_copy(update={"code": (changed,)}), CPU)
        assert other.code == [changed]
        other.restore(state.saved())
        since = changed.model_copy(update={"step": 4})
        assert (other.code, other.change_of_code()) == ([own, since], (own, since))
        other.step = 6
        again = new_state(plan.model_copy(update={"code": (changed,)}), CPU)
        again.restore(other.saved())
        assert (again.code, again.change_of_code()) == ([own, since], None)
        assert result_of(plan, again.code).code == (own, since)


def run_saving(state: TrainState, store: ImageStore, save: Any, stop_at: int) -> None:
    def check_stop() -> None:
        if state.step == stop_at:
            raise Interrupted("stopped", 15)

    train(state, store, ProcessGroup(CPU), Quiet(), save, check_stop)


def test_step_draws_depend_on_seed_and_step_alone(digits_store: Path) -> None:
    store = open_store(digits_store)
    state, other = (new_state(plan_of(store), CPU) for _ in range(2))
    state.step = other.step = 7
    torch.manual_seed(0)
    a = draw_batch(state, store)
    torch.manual_seed(1)
    b = draw_batch(other, store)
    assert all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("x_0", "labels", "index", "noise")
    )
    other.step = 8
    assert not torch.equal(draw_batch(other, store).noise, a.noise)


def test_labels_are_dropped_at_the_asked_rate(digits_store: Path) -> None:
    store = open_store(digits_store)
    state = new_state(plan_of(store, train={"batch_size": 2000, "p_uncond": 0.25}), CPU)
    labels = draw_batch(state, store).labels
    assert labels is not None
    share = (labels == 10).float().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_flips_are_opt_in(digits_store: Path) -> None:
    store = open_store(digits_store)
    straight = draw_batch(new_state(plan_of(store), CPU), store).x_0
    flipped = draw_batch(new_state(plan_of(store, data={"flip": True}), CPU), store).x_0
    mirrored = [not torch.equal(a, b) for a, b in zip(straight, flipped, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)
    assert all(torch.equal(b, a.flip(2)) for a, b, m in zip(straight, flipped, mirrored, strict=True) if m)


@pytest.mark.parametrize(
    ("optimizer", "blind"), [("adamw", False), ("adamw", True), ("muon", False), ("muon", True)]
)
def test_nan_steps_change_no_weight_are_counted_and_end_the_training(
    digits_store: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, blind: bool
) -> None:
    """Nor the EMA, the optimiser's moments or its count of steps; also of one that takes no notice itself."""
    store = open_store(digits_store)
    state = new_state(plan_of(store, train={"optimizer": optimizer}), CPU)
    run_until(state, store, 3)
    if blind:
        step = state.optimizer.step

        def blindly() -> None:
            del state.optimizer.found_inf
            step()

        monkeypatch.setattr(state.optimizer, "step", blindly)
        monkeypatch.setattr("diffusion.train.loop.BLIND", ("cpu",))
    before = {name: value.clone() for name, value in state.tensors().items()}
    assert {name.rpartition(".")[2] for name in before} >= {"step", "exp_avg", "exp_avg_sq"}
    assert any(name.startswith("ema.") for name in before)
    state.network.register_forward_hook(lambda module, args, output: output * math.nan)
    saves: list[Any] = []
    with pytest.raises(DiffctlError, match="5 non-finite steps in a row, at step 8") as failure:
        run(state, store, saves)
    assert failure.value.exit_code == 1
    assert state.skipped == 5
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    assert saves[-1][0] == 8
    assert all(value.isfinite().all() for value in saves[-1][1].values())


def test_a_single_nan_step_is_skipped_and_training_goes_on(digits_store: Path) -> None:
    store = open_store(digits_store)
    state = new_state(plan_of(store), CPU)
    calls = iter(range(1000))
    state.network.register_forward_hook(
        lambda module, args, output: output * (math.nan if next(calls) == 2 else 1.0)
    )
    seen = run(state, store).seen
    assert (state.step, state.skipped, state.bad_in_a_row) == (12, 1, 0)
    assert [values["skipped_steps"] for _, values in seen] == [1.0] * 4
    assert all(math.isfinite(value) for _, values in seen for value in values.values())


def run_until(state: TrainState, store: ImageStore, step: int) -> None:
    with pytest.raises(Interrupted):
        run(state, store, stop_at=step)


def test_a_stop_saves_first_and_an_early_one_too(digits_store: Path) -> None:
    store = open_store(digits_store)
    for at in (0, 1, 5):
        saves: list[Any] = []
        with pytest.raises(Interrupted) as stop:
            run(new_state(plan_of(store), CPU), store, saves, stop_at=at)
        assert saves[-1][0] == at
        assert stop.value.exit_code == 143


def test_training_ends_at_exactly_the_last_step_with_previews_and_a_save(digits_store: Path) -> None:
    store = open_store(digits_store)
    saves: list[Any] = []
    observer = run(new_state(plan_of(store), CPU), store, saves)
    assert [step for step, *_ in saves] == [4, 8, 12]
    assert observer.previews == [6, 12]
    assert [step for step, _ in observer.seen] == [3, 6, 9, 12]


def test_the_fingerprint_knows_what_changes_a_result(digits_store: Path) -> None:
    store = open_store(digits_store)
    base = training_fingerprint(plan_of(store))
    assert base == training_fingerprint(plan_of(store, train={"save_every": 3, "log_every": 1}))
    assert base == training_fingerprint(plan_of(store, sample={"seed": 5}))
    for changes in (
        {"train": {"lr": 1e-3}},
        {"train": {"seed": 1}},
        {"process": {"timesteps": 999}},
        {"model": {"channels": 16}},
        {"train": {"precision": "fp32"}},
        {"data": {"flip": True}},
    ):
        if changes == {"train": {"precision": "fp32"}} and plan_of(store).precision == "fp32":
            continue
        assert training_fingerprint(plan_of(store, **changes)) != base
    other = ImageStore(store.path, store.images, store.labels, {**store.meta, "digest": "another"})
    assert training_fingerprint(plan_of(other)) != base


def test_warm_ups() -> None:
    assert warmed_decay(0.999, 0) == pytest.approx(0.1)
    assert warmed_decay(0.999, 10**6) == 0.999


@pytest.mark.parametrize("microbatch", [1, 3, 8])
def test_microbatches_give_the_whole_batchs_gradient(digits_store: Path, microbatch: int) -> None:
    store = open_store(digits_store)
    losses = {}
    for size in (None, microbatch):
        train = {"microbatch": size, "precision": "fp32"}
        losses[size] = run(new_state(plan_of(store, train=train), CPU), store).seen
    for (_, whole), (_, parts) in zip(losses[None], losses[microbatch], strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)


def test_ema_moves_within_ten_steps(digits_store: Path) -> None:
    store = open_store(digits_store)
    state = new_state(plan_of(store), CPU)
    start = {name: value.clone() for name, value in state.ema.state_dict().items()}
    run_until(state, store, 10)
    assert any(not torch.equal(value, start[name]) for name, value in state.ema.state_dict().items())


def test_the_ema_is_its_closed_form(digits_store: Path) -> None:
    """Three steps written out: the k-th has d_k = min(d, (1+k)/(10+k)) of the average before it."""
    store = open_store(digits_store)
    state = new_state(plan_of(store, train={"ema_decay": 0.15}), CPU)
    seen = [weights_of(state.network)]  # e_0 is a copy of the first weights
    for step in (1, 2, 3):
        run_until(state, store, step)
        seen.append(weights_of(state.network))
    d = [0.1, 0.15, 0.15]
    assert torch.allclose(weights_of(state.ema), ema_of(seen, d), rtol=0, atol=1e-6)
    swapped = [1 - share for share in d]
    assert not torch.allclose(weights_of(state.ema), ema_of(seen, swapped), rtol=0, atol=1e-5)


def ema_of(weights: list[torch.Tensor], d: list[float]) -> torch.Tensor:
    shares = [d[0] * d[1] * d[2], (1 - d[0]) * d[1] * d[2], (1 - d[1]) * d[2], 1 - d[2]]
    return torch.stack([share * each for share, each in zip(shares, weights, strict=True)]).sum(0)


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    """All of them in one row, float64."""
    return torch.cat([value.detach().double().flatten() for value in network.parameters()])


def test_the_loss_curve_is_a_table(tmp_path: Path) -> None:
    last = 12_345_678
    write_loss_curve(
        tmp_path / "loss.csv", [{"step": 1, "loss": 0.5}, {"step": last, "loss": 0.25, "lr": 1e-3}]
    )
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert rows == ["step,loss,lr", "1,0.5,nan", f"{last},0.25,0.001"]


def test_a_second_training_of_the_same_fingerprint_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, "f"),
        pytest.raises(DiffctlError, match="already running"),
        open_run(tmp_path, "f"),
    ):
        pass


@pytest.mark.parametrize("text", ["", "[]", "null", '{"key": "x"}', "[" * 100_000])
def test_damaged_notes_of_a_training_count_for_nothing_and_that_is_told(tmp_path: Path, text: str) -> None:
    with open_run(tmp_path, "f", config={"lr": 1}) as first:
        pass
    for name in ("run.json", "config.json"):
        (first.folder / name).write_text(text)
    told = pytest.warns(DiffctlWarning, match=r"run.json is damaged .*: it counts for nothing")
    with told, open_run(tmp_path, "f", config={"lr": 1}) as again:
        assert again.key != first.key
    with open_run(tmp_path, "f") as whole:
        assert whole.key == again.key


def test_fresh_discards_and_names_a_new_training(tmp_path: Path) -> None:
    with open_run(tmp_path, "f") as first:
        (first.folder / "state-000000001.sealed").write_bytes(b"x")
        (first.folder / "previews").mkdir()
    with open_run(tmp_path, "f") as again:
        assert again.key == first.key
    with open_run(tmp_path, "f", fresh=True) as fresh:
        assert fresh.key != first.key
        assert sorted(path.name for path in fresh.folder.iterdir()) == ["lock", "run.json"]


def test_a_conditional_model_needs_labels(digits_store: Path) -> None:
    store = open_store(digits_store)
    with pytest.raises(DiffctlError, match=r"class_cond.*no labels"):
        plan_training(parse(params(), "test"), {**store.meta, "classes": [], "counts": []}, CPU)


def test_a_model_file_knows_the_class_mix_of_its_data(digits_store: Path) -> None:
    store = open_store(digits_store)
    assert list(plan_training(parse(params(), "test"), store.meta, CPU).data.counts) == store.meta["counts"]


def test_images_and_labels_stay_together(digits_store: Path) -> None:
    store = open_store(digits_store)
    state = new_state(plan_of(store, train={"p_uncond": 0.0}), CPU)
    batch = draw_batch(state, store)
    pixels = ((batch.x_0 + 1) * 127.5).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
    assert batch.labels is not None
    assert store.labels is not None
    for image, label in zip(pixels, batch.labels.tolist(), strict=True):
        same = [i for i in range(len(store)) if np.array_equal(store.images[i], image)]
        assert label in store.labels[same]
