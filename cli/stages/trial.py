"""The process of one trial of a search: train, sample and evaluate, as the stages do, in the trial's folder.

The models/, samples/ and metrics/ of the project do not change. The training is in runs/train like any other,
so it can be resumed.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cli.stages.scoring import scored_grid
from cli.stages.training import SENDER_SECONDS, TrackedTraining, follow, print_line, tracked_training
from diffusion.config import Config, load
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED, TRAIN_RUNS
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.search.search_config import SearchConfig
from diffusion.search.search_dir import (
    ABOUT,
    CURVE,
    MODEL,
    SCORES,
    About,
    TrialResult,
    read_result,
    write_result,
)
from diffusion.search.study import SearchStudy
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
from flows.dvc_stage import fetch_pretrained
from flows.trial_process import STARTER
from tracking.keys import EVALUATION_FOLDER, PRUNED, SEARCH, SEARCH_KEY, TRIAL, experiment_name
from tracking.mlflow_pages import best_scores
from tracking.spool.sender import start_sender
from tracking.spool.spool_status import read_status
from tracking.spool.spool_writer import Spool

MODULE = ("-m", "cli.entry", "search-trial")  # arguments of Python, before the folder
LOCK = "lock"  # in a trial's folder


def trial_command(folder: Path) -> list[str]:
    """Return the command that runs the trial in the folder."""
    return [sys.executable, *MODULE, str(folder)]


@dataclass
class TrialPlace:
    """The folder of a trial within the folder of its search."""

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
    """Stops the training early if the study prunes it; `at` is the last step then."""

    place: TrialPlace
    section: SearchConfig
    steps: int
    stop: StopRequest | None = None
    at: int | None = None

    def check(self, step: int, loss: float) -> None:
        """Report a validation loss, and request a save and stop if it is above the median."""
        assert self.stop is not None, "the training has started"
        study = SearchStudy(self.place.search, self.place.search.name, self.section)
        prune = study.report(self.place.number, step, loss)
        if prune and step < self.steps and self.stop.request():
            self.at = step


def run_trial(folder: Path, *, local: bool = False) -> None:
    """Run or resume the trial in the folder, and write its result to ended.json.

    It waits for another process of the same trial, such as one on an unreachable machine. With `local`,
    images are sampled in this process. UsageError if the folder has no trial. Interrupted on a signal, after
    a save.
    """
    config = load(folder / PARAMS.name)
    if local:
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"runner": "local"})})
    if config.search is None or not folder.name.isdecimal():
        raise UsageError(f"{folder} is no trial of a search: `diffctl search` makes them")
    _die_with_search()
    trainer = _trainer(config, folder)
    if is_follower():
        return follow(trainer)
    if is_held(folder / LOCK):
        print_line("trial", "waiting for another process of this trial")
    with file_lock(folder / LOCK):
        if read_result(folder) is None:
            _finish(trainer, config, TrialPlace(folder))


def _finish(trainer: Trainer, config: Config, place: TrialPlace) -> None:
    """Run the trial and write its result."""
    try:
        result = _run(trainer, config, place)
    except TemporaryError:
        raise
    except DiffctlError as error:
        result = TrialResult("failed", reason=str(error)[:1000])
    write_result(place.folder, result)


def _die_with_search() -> None:
    """End with the search, since a leftover training would block the next search."""
    starter = os.environ.pop(STARTER, None)
    if starter is not None and not die_with_parent(int(starter)):
        raise DiffctlError("the search of this trial has ended")


def _trainer(config: Config, folder: Path) -> Trainer:
    fetch_pretrained(config.train.init_from)
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(config, store.meta, default_device())
    places = TrainPaths(TRAIN_RUNS, folder / CURVE, folder / MODEL)
    return Trainer(plan, store, places, trial_command(folder), partial(print_line, "train"))


def _run(trainer: Trainer, config: Config, place: TrialPlace) -> TrialResult:
    assert config.search is not None, "it is a trial"
    assert isinstance(trainer.plan, DenoiserPlan), "`_trainer` plans one"
    about = read_checksummed_json(place.search / ABOUT, About)
    pruning = Pruning(place, config.search, config.train.steps)
    try:
        training = _lead(trainer, partial(_tracked_trial, trainer.plan, config, pruning, about))
    except Interrupted:
        if pruning.at is None or pruning.stop is None:
            raise
        pruning.stop.clear()
        return TrialResult("pruned")
    model = place.folder / MODEL
    document = scored_grid(config.sample, config.sweep, config.evaluate, model, place.folder)
    _log(training, document, place)
    return TrialResult("done", document.best.value)


def _lead(
    trainer: Trainer,
    observe: Callable[[RunDir, StopRequest], AbstractContextManager[TrackedTraining]],
) -> TrackedTraining:
    """As `Trainer.lead`, after other processes with the same training: two points may be one training."""
    lock, started = TRAIN_RUNS / training_fingerprint(trainer.plan) / "lock", False

    def start(run: RunDir, stop: StopRequest) -> AbstractContextManager[TrackedTraining]:
        nonlocal started
        started = True
        return observe(run, stop)

    while True:
        try:
            return trainer.lead(start)
        except LockBusy as busy:
            if started:
                raise
            print_line("train", f"waiting: {busy}")
            with file_lock(lock):
                pass


@contextmanager
def _tracked_trial(
    plan: DenoiserPlan,
    config: Config,
    pruning: Pruning,
    about: About,
    run: RunDir,
    stop: StopRequest,
) -> Iterator[TrackedTraining]:
    """Track the training as a child run of the search, and prune it by its validation loss."""
    pruning.stop = stop
    with tracked_training(plan, config, run, stop) as training:
        name = pruning.place.search.name
        training.spool.tags({SEARCH: name, SEARCH_KEY: about.key, TRIAL: str(pruning.place.number)})
        if pruning.section.prune:
            training.observer.on_validation = pruning.check
        try:
            yield training
        finally:
            if pruning.at is not None:
                training.spool.tags({PRUNED: str(pruning.at)})


def _log(training: TrackedTraining, document: ScoresDocument, place: TrialPlace) -> None:
    """Add the scores to the spool of the training and deliver it."""
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
