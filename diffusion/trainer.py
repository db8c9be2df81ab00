"""A training from its plan to its model file, led by one process and followed by any others."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from diffusion.checkpoint import save_artefact
from diffusion.data.store import ImageStore
from diffusion.devices import Waiting
from diffusion.processes import together
from diffusion.resolve import TrainPlan, build_objective, training_fingerprint
from diffusion.signals import StopRequest, stop_request
from diffusion.training import Observer, Silent, TrainState, new_state, train
from diffusion.trainrun import TrainRun, open_training, write_loss_curve


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
        watched: Callable[[TrainRun, StopRequest], AbstractContextManager[W]],
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
            together(plan.train, self.command, self.say, stop.raise_if_set) as ranks,
            watched(run, stop) as watcher,
        ):
            state = new_state(plan, ranks.device)
            run.restore(state)
            watcher.announce(state)
            ranks.spread(training_fingerprint(plan), state.saved())
            train(state, self.store, ranks, watcher.observer, watcher.save, partial(ranks.agree, stop))
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
            together(plan.train, self.command, self.say, stop.raise_if_set) as ranks,
        ):
            state = new_state(plan, ranks.device)
            state.restore(ranks.spread(training_fingerprint(plan), state.saved()))
            train(state, self.store, ranks, Silent(), lambda state: None, partial(ranks.agree, stop))
