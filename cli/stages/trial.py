"""A trial of a search, in a process of its own: train, sample, evaluate, as the stages do, in its folder.

Nothing of it is the pipeline's: the project's models/, samples/ and metrics/ stay as they are. The training
lies in runs/train as any does, so that it goes on where it was stopped.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cli.stages.scoring import scored_grid
from cli.stages.training import SENDER_SECONDS, Tracked, follow, say, tracked
from diffusion.config import Config, load
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED, TRAIN_RUNS
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.search.config import SearchConfig
from diffusion.search.folder import ABOUT, CURVE, MODEL, SCORES, About, read_ended, write_ended
from diffusion.search.ledger import Ledger
from diffusion.search.trial import Ended
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, Interrupted, TemporaryError, UsageError
from diffusion.system.locks import LockBusy, file_lock, is_held
from diffusion.system.processes import die_with_parent
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.distributed.launch import is_follower
from diffusion.train.plan import DenoiserPlan, plan_training, training_fingerprint
from diffusion.train.trainer import Trainer, TrainPaths
from flows.fetch_pretrained import fetch_pretrained
from flows.trial_process import STARTER
from tracking.keys import EVALUATION_FOLDER, PRUNED, SEARCH, SEARCH_KEY, TRIAL, experiment_name
from tracking.mlflow_pages import best_scores
from tracking.spool.sender import start_sender
from tracking.spool.spool_writer import Spool
from tracking.spool.training_status import read_status

MODULE = ("-m", "cli.entry", "search-trial")  # Python's arguments before the trial's folder
LOCK = "lock"  # in a trial's folder


def command(folder: Path) -> list[str]:
    """The command that runs the trial in the folder."""
    return [sys.executable, *MODULE, str(folder)]


@dataclass
class Place:
    """A trial's folder, in that of its search, and its number there."""

    folder: Path

    @property
    def search(self) -> Path:
        """The folder of the search."""
        return self.folder.parents[1]

    @property
    def number(self) -> int:
        """The trial's number."""
        return int(self.folder.name)


@dataclass
class Pruning:
    """Ends the training early where the ledger says so; `at` is the step after which it did."""

    place: Place
    section: SearchConfig
    steps: int
    stop: StopRequest | None = None
    at: int | None = None

    def judge(self, step: int, loss: float) -> None:
        """Note a validation loss, and ask the training to save and stop where it is over the median."""
        assert self.stop is not None, "the training has begun"
        ledger = Ledger(self.place.search, self.place.search.name, self.section)
        ends = ledger.report(self.place.number, step, loss)
        if ends and step < self.steps and self.stop.request():
            self.at = step


def run_trial(folder: Path, *, local: bool = False) -> None:
    """Make the trial whose params.yaml lies in the folder, or go on with it; ended.json says how it ended.

    It waits for who is at the same trial still, such as what a lost machine has left. With `local` the images
    are made in this process. UsageError for a folder that holds no trial. Interrupted on a signal, after
    saving.
    """
    config = _config(folder / PARAMS.name)
    if local:
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"runner": "local"})})
    if config.search is None or not folder.name.isdecimal():
        raise UsageError(f"{folder} is no trial of a search: `diffctl search` makes them")
    _die_with_the_search()
    trainer = _trainer(config, folder)
    if is_follower():
        return follow(trainer)
    if is_held(folder / LOCK):
        say("trial", "waiting: another process is at it still")
    with file_lock(folder / LOCK):
        if read_ended(folder) is None:
            _end(trainer, config, Place(folder))


def _end(trainer: Trainer, config: Config, place: Place) -> None:
    """Make the trial and write down how it ended."""
    try:
        ended = _made(trainer, config, place)
    except TemporaryError:
        raise
    except DiffctlError as error:
        ended = Ended("failed", reason=str(error)[:1000])
    write_ended(place.folder, ended)


def _config(path: Path) -> Config:
    return load(path)


def _die_with_the_search() -> None:
    """A search that is killed leaves no training behind that would keep the next one from it."""
    starter = os.environ.pop(STARTER, None)
    if starter is not None and not die_with_parent(int(starter)):
        raise DiffctlError("the search that this is a trial of has ended")


def _trainer(config: Config, folder: Path) -> Trainer:
    fetch_pretrained(config.train.init_from)
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(config, store.meta, default_device())
    places = TrainPaths(TRAIN_RUNS, folder / CURVE, folder / MODEL)
    return Trainer(plan, store, places, command(folder), partial(say, "train"))


def _made(trainer: Trainer, config: Config, place: Place) -> Ended:
    assert config.search is not None, "it is a trial"
    assert isinstance(trainer.plan, DenoiserPlan), "`_trainer` makes one"
    about = _about(place)
    pruning = Pruning(place, config.search, config.train.steps)
    try:
        training = _led(trainer, partial(_watched, trainer.plan, config, pruning, about))
    except Interrupted:
        if pruning.at is None or pruning.stop is None:
            raise
        pruning.stop.clear()
        return Ended("pruned")
    model = place.folder / MODEL
    document = scored_grid(config.sample, config.sweep, config.evaluate, model, place.folder)
    _log(training, document, place)
    return Ended("done", document.best.value)


def _led(
    trainer: Trainer,
    watched: Callable[[RunDir, StopRequest], AbstractContextManager[Tracked]],
) -> Tracked:
    """As `Trainer.lead`, once no other process is at the same training: two points may be one training."""
    lock, begun = TRAIN_RUNS / training_fingerprint(trainer.plan) / "lock", False

    def noted(run: RunDir, stop: StopRequest) -> AbstractContextManager[Tracked]:
        nonlocal begun
        begun = True
        return watched(run, stop)

    while True:
        try:
            return trainer.lead(noted)
        except LockBusy as busy:
            if begun:
                raise
            say("train", f"waiting, for {busy}")
            with file_lock(lock):
                pass


def _about(place: Place) -> About:
    return read_checksummed_json(place.search / ABOUT, About)


@contextmanager
def _watched(
    plan: DenoiserPlan,
    config: Config,
    pruning: Pruning,
    about: About,
    run: RunDir,
    stop: StopRequest,
) -> Iterator[Tracked]:
    """Watch the training as any, as a child of the search's run, and by its validation loss."""
    pruning.stop = stop
    with tracked(plan, config, run, stop) as training:
        name = pruning.place.search.name
        training.spool.tags({SEARCH: name, SEARCH_KEY: about.key, TRIAL: str(pruning.place.number)})
        if pruning.section.prune:
            training.observer.judge = pruning.judge
        try:
            yield training
        finally:
            if pruning.at is not None:
                training.spool.tags({PRUNED: str(pruning.at)})


def _log(training: Tracked, document: ScoresDocument, place: Place) -> None:
    """The best cell's scores and the whole document into the spool of the training, which is delivered."""
    folder = training.run.folder
    known = read_status(folder)
    best = document.cells[document.best.cell]
    title = known.name if known is not None else folder.name
    with file_lock(folder / "lock"):
        spool = Spool(folder, training.run.key, title, experiment_name(str(best.card["data"])))
        spool.metrics(known.step if known is not None else 0, best_scores(document))
        spool.artifact(place.folder / SCORES, EVALUATION_FOLDER)
        spool.close("FINISHED")
    start_sender(folder).close(SENDER_SECONDS["FINISHED"])
