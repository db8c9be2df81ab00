"""A training from its plan to its model file, led by one process and followed by any others."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from diffusion.images.store import ImageStore
from diffusion.model.model_file import save_artefact
from diffusion.system.devices import Waiting
from diffusion.system.signals import StopRequest, stop_request
from diffusion.train.identity import TrainPlan, build_objective, training_fingerprint
from diffusion.train.launch import together
from diffusion.train.loop import Observer, Silent, TrainState, new_state, train
from diffusion.train.run_folder import RunFolder, open_training, write_loss_curve


class Watcher(Protocol):
    """Who tells people of a training, and keeps its states."""

    @property
    def observer(self) -> Observer:
        """What the loop tells."""

    def announce(self, state: TrainState) -> None:
        """The training begins, or goes on, at this state."""

    def save(self, state: TrainState) -> None:
        """Keep the state."""

    def finished(self, model: Path) -> None:
        """The model file is written."""


W = TypeVar("W", bound=Watcher)


@dataclass(frozen=True)
class Places:
    """Where the folders of such trainings, the curve and the model file lie."""

    runs: Path
    curve: Path
    model: Path


@dataclass(frozen=True)
class Trainer:
    """The training of a plan with a store's images. `command` starts another process of it.

    `say` is told what it waits for.
    """

    plan: TrainPlan
    store: ImageStore
    places: Places
    command: Sequence[str]
    say: Waiting

    def lead(
        self,
        watched: Callable[[RunFolder, StopRequest], AbstractContextManager[W]],
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
            together(plan.train, self.command, self.say, stop.raise_if_set) as group,
            watched(run, stop) as watcher,
        ):
            state = new_state(plan, group.device)
            run.restore(state)
            watcher.announce(state)
            group.broadcast_state(training_fingerprint(plan), state.saved())
            train(
                state, self.store, group, watcher.observer, watcher.save, partial(group.agree_on_stop, stop)
            )
            write_loss_curve(places.curve, state.history)
            result = build_objective(plan).result(plan, state.code)
            save_artefact(places.model, state.ema.state_dict(), result)
            watcher.finished(places.model)
        return watcher

    def follow(self) -> None:
        """Compute a share of every batch of a training that another process leads.

        Interrupted or RankLost as there, which says it.
        """
        plan = self.plan
        with (
            stop_request() as stop,
            together(plan.train, self.command, self.say, stop.raise_if_set) as group,
        ):
            state = new_state(plan, group.device)
            state.restore(group.broadcast_state(training_fingerprint(plan), state.saved()))
            train(state, self.store, group, Silent(), lambda state: None, partial(group.agree_on_stop, stop))
