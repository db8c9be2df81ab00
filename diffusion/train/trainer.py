"""A training from its plan to its model file, led by one process and followed by any others."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from diffusion.images.store import ImageStore
from diffusion.layout import STARTS
from diffusion.model.model_file import Artefact, save_artefact
from diffusion.system.devices import OnWait
from diffusion.system.section import canonical_json
from diffusion.system.signals import StopRequest, stop_request
from diffusion.train.checkpoint.ema_snapshots import publish_snapshots, save_snapshots
from diffusion.train.checkpoint.run_dir import RunDir, open_training, restore_state, write_loss_curve
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.distributed.launch import launch_ranks
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.rank_zero import rank_zero_first
from diffusion.train.loop import NullObserver, Observer, TrainState, new_state, train
from diffusion.train.plan import TrainPlan, build_objective, training_fingerprint


class RunObserver(Protocol):
    """Who tells people of a training, and keeps its states."""

    @property
    def observer(self) -> Observer:
        """What the loop tells."""

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """The training begins, or goes on, at this state; `ema` is its average, whole where it is scored."""

    def save(self, state: TrainState) -> None:
        """Keep the state."""

    def finished(self, model: Path) -> None:
        """The model file is written."""


W = TypeVar("W", bound=RunObserver)

BEGIN = "begin"  # what the first process does alone before the first step


@dataclass(frozen=True)
class TrainPaths:
    """Where the folders of such trainings, the curve and the model file lie, and what they start from.

    `averages` is the folder of snapshots, which not all trainings give.
    """

    runs: Path
    curve: Path
    model: Path
    starts: Path = STARTS
    averages: Path | None = None


@dataclass(frozen=True)
class Trainer:
    """The training of a plan with a store's images. `command` starts another process of it.

    `say` is told what it waits for.
    """

    plan: TrainPlan
    store: ImageStore
    places: TrainPaths
    command: Sequence[str]
    say: OnWait

    def lead(
        self,
        watched: Callable[[RunDir, StopRequest], AbstractContextManager[W]],
        *,
        fresh: bool = False,
        keep: bool = False,
    ) -> W:
        """Train, or go on where the same training stopped, and write the model file; `watched` watches.

        `fresh` and `keep` as `open_training`. Interrupted after a save on a signal.
        """
        plan, places = self.plan, self.places
        with (
            open_training(plan, places.runs, fresh=fresh, keep=keep) as run,
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.say, stop.raise_if_set) as group,
            watched(run, stop) as watcher,
        ):
            state = new_state(plan, group.device, places.starts, group)
            run.restore(state, partial(_share_state, state, group))
            ema = _whole_ema(state)
            with rank_zero_first(group, BEGIN):
                watcher.announce(state, ema)
            del ema
            with run.writer.beside():
                train(
                    state,
                    self.store,
                    group,
                    watcher.observer,
                    watcher.save,
                    partial(_between_steps, run, group, stop),
                    partial(self._snapshot, run),
                )
            write_loss_curve(places.curve, state.history)
            result = self._result(state)
            if places.averages is not None:
                publish_snapshots(run.folder, places.averages, plan.train, result)
            save_artefact(places.model, state.ema.state_dict(), result)
            watcher.finished(places.model)
        return watcher

    def _snapshot(self, run: RunDir, state: TrainState) -> None:
        """Keep the averages as they are now."""
        said = self._result(state).model_copy(update={"step": state.step})
        save_snapshots(run.folder, state.averages, self.plan.train.sigma_rels, said)

    def _result(self, state: TrainState) -> Artefact:
        """What the model file says."""
        return build_objective(self.plan).result(self.plan, state.code)

    def follow(self) -> None:
        """Compute a share of every batch of a training that another process leads.

        Interrupted or RankFailed as there, which says it.
        """
        plan = self.plan
        with (
            stop_request() as stop,
            launch_ranks(plan.train, self.command, self.say, stop.raise_if_set) as group,
        ):
            state = new_state(plan, group.device, self.places.starts, group)
            restore_state(state, _share_state(state, group), "the first process's state")
            _whole_ema(state)
            with rank_zero_first(group, BEGIN):
                pass
            train(
                state,
                self.store,
                group,
                NullObserver(),
                lambda state: None,
                partial(group.agree_on_stop, stop),
            )


def _share_state(
    state: TrainState, group: ProcessGroup, newest: SavedState | None = None
) -> SavedState | None:
    """What all processes begin with, which is the first one's: its newest state, or the new one that it has.

    None where each begins with its own, alone or in new shards, which are of the same weights.
    """
    if newest is None and group.world_size > 1 and not state.shards:
        newest = state.saved()
    return group.broadcast_state(_identity(state.plan), newest)


def _whole_ema(state: TrainState) -> nn.Module:
    """The average of the weights, whole on the first process where it is scored; all processes call it."""
    is_scored = state.step > 0 and state.plan.train.is_scored(state.step)
    return state.shards.ema(state) if state.shards and is_scored else state.ema


def _identity(plan: TrainPlan) -> str:
    """What must be the same in all processes: the training, and when the first one works alone."""
    times = {name: often for name, often in plan.train.model_dump().items() if name.endswith("_every")}
    return f"{training_fingerprint(plan)} {canonical_json(times)}"


def _between_steps(run: RunDir, group: ProcessGroup, stop: StopRequest) -> None:
    """Raise what ends the training before its next step: a save that has failed, or a signal."""
    run.writer.check()
    group.agree_on_stop(stop)
