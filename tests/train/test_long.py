"""A training of 200,000 steps: state file, spool and memory do not grow with the steps."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.system.errors import Interrupted
from diffusion.system.limits import MAX_COUNT
from diffusion.train import loop
from diffusion.train.checkpoint.run_dir import open_run, write_loss_curve
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.lr_schedule import ConstantLR
from diffusion.train.observers import NullObserver
from diffusion.train.plan import plan_training
from diffusion.train.train_config import CURVE_ROWS, TrainConfig
from diffusion.train.train_step import TrainState, new_state
from tests.conftest import params
from tracking.spool.spool_events import EVENTS
from tracking.spool.spool_writer import Spool, SpoolIndex

CPU = torch.device("cpu")
STEPS = 200_000
NAMES = ("loss", "mse", "vlb", "grad_norm")


class Watched(NullObserver):
    """An observer that logs to the spool, as the stage does."""

    def __init__(self, spool: Spool) -> None:
        self.metrics = spool.metrics  # type: ignore[method-assign]


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make steps compute nothing except means."""

    def step(state: TrainState, *rest: object) -> dict[str, torch.Tensor]:
        state.step += 1
        return {name: torch.tensor(1 / state.step) for name in NAMES}

    def nothing(*of: object) -> Iterator[None]:
        while True:
            yield None

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(loop, "_remaining_batches", nothing)


def stopping_at(state: TrainState, step: int, grown: list[int]) -> Callable[[], None]:
    """Stop at `step`; append the growth of Python's memory over the last 20,000 steps."""

    def check() -> None:
        if state.step == step - 20_000:
            tracemalloc.start()
        if state.step == step:
            grown.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            raise Interrupted("stopped", 15)

    return check


@pytest.mark.slow
def test_state_spool_and_memory_do_not_grow_with_the_steps(
    digits_store: Path, tmp_path: Path, instant: None
) -> None:
    store = open_store(digits_store)
    settings = {"steps": STEPS, "log_every": 10, "save_every": 50_000}
    plan = plan_training(parse(params(train=settings), "test"), store.meta, CPU)
    grown: list[int] = []
    with open_run(tmp_path, "f") as run:
        spool = Spool(run.folder, "key", "name", "experiment")
        state, resumed = new_state(plan, CPU), new_state(plan, CPU)
        group, watched = ProcessGroup(CPU), Watched(spool)
        with pytest.raises(Interrupted):
            train(state, store, group, watched, run.save, stopping_at(state, 120_000, grown))
        assert run.restore(resumed)
        train(resumed, store, group, watched, run.save, lambda: None)
        spool.close("FINISHED")
        assert [row["step"] for row in resumed.history] == list(range(100, STEPS + 1, 100))
        weights = sum(value.nbytes for value in resumed.tensors().values())
        (newest, _) = sorted(run.folder.glob("state-*"), reverse=True)
        assert newest.stat().st_size - weights < 2**19
        assert (run.folder / EVENTS).stat().st_size / (STEPS / 10) < 300, "bytes a logged point"
        assert set(SpoolIndex.of(run.folder).steps.values()) == {STEPS}
    assert grown[0] < 2**19, "200 rows of the curve"
    write_loss_curve(tmp_path / "loss.csv", resumed.history)
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == CURVE_ROWS + 1


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
