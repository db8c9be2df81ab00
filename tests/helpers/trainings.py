"""Small trainings in this process: plans, runs to the end or to a stop, and exact comparison."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import ImageStore
from diffusion.system.errors import Interrupted
from diffusion.train.checkpoint.run_dir import RunDir, open_training, restore_state, save_snapshots
from diffusion.train.checkpoint.state_files import SavedState, newest_state
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import DenoiserPlan, plan_training
from diffusion.train.train_state import TrainState
from tests.conftest import params

CPU = torch.device("cpu")

Save = Callable[[SavedState], None]
Snapshot = Callable[[TrainState, list[torch.nn.Module]], None]
STOP = Interrupted("stopped", 15)


class Killed(Exception):
    """Ends a training without a save, as SIGKILL does."""


class Recorder(Observer):
    """An observer that saves by a function, and keeps the logged metrics and the steps of previews."""

    def __init__(self, save: Save = lambda saved: None) -> None:
        self.save = save  # type: ignore[method-assign]
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.previews: list[int] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.seen.append((step, values))

    def preview(self, step: int, network: torch.nn.Module, ema: torch.nn.Module) -> None:
        self.previews.append(step)


def plan_of(store: ImageStore, **changes: dict[str, Any]) -> DenoiserPlan:
    """Return the plan of the small digits training with `changes` to its sections."""
    return plan_training(parse(params(**changes), "test"), store.meta, CPU)


def run(
    state: TrainState,
    store: ImageStore,
    save: Save = lambda saved: None,
    stop_at: int | None = None,
    snapshot: Snapshot = lambda state, profiles: None,
    observer: Observer | None = None,
    error: Exception | Interrupted = STOP,
) -> Recorder:
    """Train to the end, on the network's device; raise `error` at step `stop_at`."""

    def check_stop() -> None:
        if stop_at is not None and state.step >= stop_at:
            raise error

    recorder = Recorder(save)
    group = ProcessGroup(next(state.network.parameters()).device)
    train(state, store, group, observer or recorder, check_stop, snapshot)
    return recorder


def run_until(state: TrainState, store: ImageStore, step: int, save: Save = lambda saved: None) -> Recorder:
    """Train until the state has made `step` steps, and save there."""
    recorder = Recorder(save)
    with pytest.raises(Interrupted):
        run(state, store, stop_at=step, observer=recorder)
    assert state.step == step
    return recorder


def restore(run: RunDir, state: TrainState) -> None:
    """Restore the newest state of the run directory, if it has one."""
    restore_state(state, newest_state(run.folder), "the state")


def run_in(
    store: ImageStore,
    plan: DenoiserPlan,
    root: Path,
    stop_at: int | None = None,
    error: Exception | Interrupted = STOP,
    **options: bool,
) -> tuple[RunDir, TrainState, int]:
    """Train in the plan's run directory in `root`, to the end or to a stop, with its snapshots.

    Returns the run directory, the state, and the step from which the training was resumed.
    """
    with open_training(plan, root, **options) as folder:
        state = new_state(plan, CPU)
        restore(folder, state)
        begun = state.step

        try:
            with folder.saving():
                run(
                    state,
                    store,
                    folder.writer.save,
                    stop_at,
                    partial(save_snapshots, folder.folder),
                    error=error,
                )
        except (Interrupted, Killed):
            assert state.step == stop_at
    return folder, state, begun


def assert_same(a: TrainState, b: TrainState) -> None:
    """Assert that both states have the same bits and the same counters."""
    ours, theirs = a.tensors(), b.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.values() == b.values()
