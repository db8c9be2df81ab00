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

from cli.commands.models import SearchTrial
from cli.stages.observers import TrackedTraining, print_line
from cli.stages.scoring import scored_grid
from cli.stages.training import SENDER_SECONDS, follow, tracked_training
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
from flows.ray.trial_runner import STARTER
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
class TrialRun:
    """A trial in its folder, which is two levels below the folder of its search."""

    folder: Path
    config: Config
    section: SearchConfig
    stop: StopRequest | None = None
    """The request to stop of the running training."""
    pruned_at: int | None = None
    """The step at which the study stopped the training, if it did."""

    @property
    def search(self) -> Path:
        """The folder of the search."""
        return self.folder.parents[1]

    @property
    def number(self) -> int:
        """The trial's number."""
        return int(self.folder.name)

    def report(self, step: int, loss: float) -> None:
        """Report a validation loss, and request a save and stop if the study prunes the trial."""
        assert self.stop is not None, "the training has started"
        study = SearchStudy(self.search, self.search.name, self.section)
        prune = study.report(self.number, step, loss)
        if prune and step < self.config.train.steps and self.stop.request():
            self.pruned_at = step


def run_trial(options: SearchTrial) -> None:
    """Run or resume the trial in the folder, and write its result to ended.json.

    It waits for another process of the same trial, such as one on an unreachable machine. UsageError if the
    folder has no trial. Interrupted on a signal, after a save.
    """
    folder = options.folder
    config = load(folder / PARAMS.name)
    if options.local:
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"runner": "local"})})
    if config.search is None or not folder.name.isdecimal():
        raise UsageError(f"{folder} is no trial of a search: `diffctl search` makes them")
    if starter := os.environ.pop(STARTER, None):  # a leftover training would block the next search
        die_with_parent(int(starter), "the search of this trial")
    fetch_pretrained(config.train.init_from)
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(config, store.meta, default_device())
    places = TrainPaths(TRAIN_RUNS, folder / CURVE, folder / MODEL)
    trainer = Trainer(plan, store, places, trial_command(folder), partial(print_line, "train"))
    if is_follower():
        return follow(trainer)
    if is_held(folder / LOCK):
        print_line("trial", "waiting for another process of this trial")
    with file_lock(folder / LOCK):
        if read_result(folder) is None:
            try:
                result = _train_and_score(TrialRun(folder, config, config.search), trainer, plan)
            except TemporaryError:
                raise
            except DiffctlError as error:
                result = TrialResult("failed", reason=str(error)[:1000])
            write_result(folder, result)


def _train_and_score(trial: TrialRun, trainer: Trainer, plan: DenoiserPlan) -> TrialResult:
    about = read_checksummed_json(trial.search / ABOUT, About)
    try:
        training = _lead(trainer, partial(_tracked_trial, trial, plan, about))
    except Interrupted:
        if trial.pruned_at is None or trial.stop is None:
            raise
        trial.stop.clear()
        return TrialResult("pruned")
    config, model = trial.config, trial.folder / MODEL
    document = scored_grid(config.sample, config.sweep, config.evaluate, model, trial.folder)
    _log(training, document, trial.folder)
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
    trial: TrialRun, plan: DenoiserPlan, about: About, run: RunDir, stop: StopRequest
) -> Iterator[TrackedTraining]:
    """Track the training as a child run of the search, and prune it by its validation loss."""
    trial.stop = stop
    with tracked_training(plan, trial.config, run, stop) as training:
        training.spool.tags({SEARCH: trial.search.name, SEARCH_KEY: about.key, TRIAL: str(trial.number)})
        if trial.section.prune:
            training.on_validation = trial.report
        try:
            yield training
        finally:
            if trial.pruned_at is not None:
                training.spool.tags({PRUNED: str(trial.pruned_at)})


def _log(training: TrackedTraining, document: ScoresDocument, trial_folder: Path) -> None:
    """Add the scores to the spool of the training and deliver it."""
    folder = training.run.folder
    known = read_status(folder)
    best = document.cells[document.best.cell]
    title = known.name if known is not None else folder.name
    with file_lock(folder / "lock"):
        spool = Spool(folder, training.run.key, title, experiment_name(str(best.card["data"])))
        spool.metrics(known.step if known is not None else 0, best_scores(document))
        spool.artifact(trial_folder / SCORES, EVALUATION_FOLDER)
        spool.close("FINISHED")
    start_sender(folder).close(SENDER_SECONDS["FINISHED"])
