"""A training from its plan to its model file, led by rank 0."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from diffusion.images.store import ImageStore
from diffusion.layout import STARTS
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
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_artefact, training_fingerprint
from diffusion.train.train_step import TrainState, new_state
from diffusion.train.validation_loss import write_loss_curve


class RunObserver(Observer):
    """Reports a training to the user and saves its states."""

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """Report the start or resume; `ema` is unsharded if it is scored at this step."""

    def save(self, state: TrainState) -> None:
        """Save the state."""

    def finished(self, model: Path) -> None:
        """Report the written model file."""


Run = TypeVar("Run", bound=RunObserver)

START = "begin"  # the work of rank 0 alone before the first step


@dataclass(frozen=True)
class TrainPaths:
    """Run directories, curve, model file, pretrained models, and `averages`, if snapshots are published."""

    runs: Path
    curve: Path
    model: Path
    starts: Path = STARTS
    averages: Path | None = None


@dataclass(frozen=True)
class Trainer:
    """The training of a plan with a store's images.

    `command` starts another of its processes. `on_wait` is called with what it waits for.
    """

    plan: TrainPlan
    store: ImageStore
    places: TrainPaths
    command: Sequence[str]
    on_wait: OnWait

    def lead(
        self,
        observe: Callable[[RunDir, StopRequest], AbstractContextManager[Run]],
        *,
        fresh: bool = False,
        keep: bool = False,
    ) -> Run:
        """Train or resume as rank 0, write the model file. Interrupted by a signal, after a save."""
        plan, places = self.plan, self.places
        with (
            open_training(plan, places.runs, fresh=fresh, keep=keep) as run,
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.on_wait, stop.raise_if_set) as group,
            observe(run, stop) as observer,
        ):
            state = new_state(plan, group.device, places.starts, group)
            newest = _share_state(state, group, newest_state(run.folder))
            restore_state(state, newest, f"the state in {run.folder}")
            del newest
            ema = _full_ema(state)
            with rank_zero_first(group, START):
                observer.announce(state, ema)
            del ema
            with run.saving():
                train(
                    state,
                    self.store,
                    group,
                    observer,
                    observer.save,
                    partial(_check_between_steps, run, group, stop),
                    partial(self._snapshot, run),
                )
            write_loss_curve(places.curve, state.history)
            artefact = plan_artefact(plan, state.code)
            if places.averages is not None:
                publish_snapshots(run.folder, places.averages, plan.train, artefact)
            save_artefact(places.model, state.ema.state_dict(), artefact)
            observer.finished(places.model)
        return observer

    def follow(self) -> None:
        """Train as another rank: compute a share of every batch. Errors as on rank 0, which reports them."""
        plan = self.plan
        with (
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.on_wait, stop.raise_if_set) as group,
        ):
            state = new_state(plan, group.device, self.places.starts, group)
            restore_state(state, _share_state(state, group), "the first process's state")
            _full_ema(state)
            with rank_zero_first(group, START):
                pass
            check_stop = partial(group.agree_on_stop, stop)
            train(state, self.store, group, Observer(), lambda state: None, check_stop)

    def _snapshot(self, run: RunDir, state: TrainState) -> None:
        artefact = plan_artefact(self.plan, state.code).model_copy(update={"step": state.step})
        save_snapshots(run.folder, state.ema_profiles, self.plan.train.sigma_rels, artefact)


def _share_state(
    state: TrainState, group: ProcessGroup, newest: SavedState | None = None
) -> SavedState | None:
    """Return rank 0's state; None if each rank starts from its own: alone, or from equal new shards."""
    if newest is None and group.world_size > 1 and not state.shards:
        newest = state.saved()
    return group.broadcast_state(_identity(state.plan), newest)


def _full_ema(state: TrainState) -> nn.Module:
    """Return the EMA, gathered on rank 0 if it is scored at this step; a collective."""
    is_scored = state.step > 0 and state.plan.train.is_due(state.step, "eval_every")
    return state.shards.gather(state.ema) if state.shards and is_scored else state.ema


def _identity(plan: TrainPlan) -> str:
    """Return what must be equal on all ranks: the training, and the steps with work of rank 0 alone."""
    intervals = {name: value for name, value in plan.train.model_dump().items() if name.endswith("_every")}
    return f"{training_fingerprint(plan)} {canonical_json(intervals)}"


def _check_between_steps(run: RunDir, group: ProcessGroup, stop: StopRequest) -> None:
    """Raise the error of a failed save, or Interrupted after a signal."""
    run.writer.check()
    group.agree_on_stop(stop)
