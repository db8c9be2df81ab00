"""A training from its plan to its model file, led by rank 0."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from diffusion.images.store import ImageStore
from diffusion.model.model_file import save_artefact
from diffusion.system.devices import OnWait
from diffusion.system.section import canonical_json
from diffusion.system.signals import StopRequest, stop_request
from diffusion.train.checkpoint.run_dir import (
    RunDir,
    open_training,
    publish_snapshots,
    restore_state,
    save_snapshots,
)
from diffusion.train.checkpoint.state_files import SavedState, newest_state
from diffusion.train.distributed.launch import launch_ranks
from diffusion.train.distributed.process_group import ProcessGroup, rank_zero_first
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_artefact, training_fingerprint
from diffusion.train.train_state import TrainState
from diffusion.train.validation_loss import write_loss_curve

Run = TypeVar("Run", bound=Observer)

START = "begin"  # the work of rank 0 alone before the first step


@dataclass(frozen=True)
class Trainer:
    """The training of a plan with a store's images.

    `command` starts another of its processes. `on_wait` is called with what it waits for. The paths are those
    of run directories, loss curve and model file, and of `averages`, if snapshots are published.
    """

    plan: TrainPlan
    store: ImageStore
    command: Sequence[str]
    on_wait: OnWait
    runs: Path
    curve: Path
    model: Path
    averages: Path | None = None

    def lead(
        self,
        observe: Callable[[RunDir, StopRequest], AbstractContextManager[Run]],
        *,
        fresh: bool = False,
        keep: bool = False,
    ) -> Run:
        """Train or resume as rank 0, write the model file. Interrupted by a signal, after a save."""
        plan = self.plan
        with (
            open_training(plan, self.runs, fresh=fresh, keep=keep) as run,
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.on_wait, stop.raise_if_set) as group,
            observe(run, stop) as observer,
        ):
            state = new_state(plan, group.device, group=group)
            what = f"the state in {run.folder}"
            restore_state(state, share_state(state, group, newest_state(run.folder)), what)
            ema = _scored_ema(state)
            with rank_zero_first(group, START):
                observer.announce(state, ema)
            del ema

            def check_stop() -> None:
                run.writer.check()
                group.agree_on_stop(stop)

            snapshot = partial(save_snapshots, run.folder)
            with run.saving(self.on_wait):
                train(state, self.store, group, observer, check_stop, snapshot)
            write_loss_curve(self.curve, state.history)
            artefact = plan_artefact(plan, state.code)
            save_artefact(self.model, state.ema.state_dict(), artefact)
            if self.averages is not None:
                publish_snapshots(run.folder, self.averages, plan.train, artefact)
            observer.finished(self.model)
        return observer

    def follow(self) -> None:
        """Train as another rank: compute a share of every batch. Errors as on rank 0, which reports them."""
        plan = self.plan
        with (
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.on_wait, stop.raise_if_set) as group,
        ):
            state = new_state(plan, group.device, group=group)
            restore_state(state, share_state(state, group), "the first process's state")
            _scored_ema(state)
            with rank_zero_first(group, START):
                pass
            train(state, self.store, group, Observer(), partial(group.agree_on_stop, stop))


def share_state(
    state: TrainState, group: ProcessGroup, newest: SavedState | None = None
) -> SavedState | None:
    """Return rank 0's state; None if each rank starts from its own: alone, or from equal new shards."""
    if newest is None and group.world_size > 1 and not state.shards:
        newest = state.saved()
    return group.broadcast_state(_identity(state.plan), newest)


def _identity(plan: TrainPlan) -> str:
    """Return what must be equal on all ranks: the training, and what decides when rank 0 works alone."""
    fields = plan.train.model_dump().items()  # the interval of `val_every: auto` follows from `val_images`
    shared = {name: value for name, value in fields if name.endswith("_every") or name == "val_images"}
    return f"{training_fingerprint(plan)} {canonical_json(shared)}"


def _scored_ema(state: TrainState) -> nn.Module:
    """Return the EMA, in full on rank 0 if it is scored at this step; a collective with shards."""
    is_scored = state.step > 0 and state.plan.train.is_due(state.step, "eval_every")
    return state.full(state.ema) if is_scored else state.ema
