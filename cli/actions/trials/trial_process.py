"""A trial of a search or a verdict as a process: train, sample and score in the trial's folder.

A search or a verdict starts these processes by `trial_runner`. The models/, samples/ and metrics/ of the
project do not change. The training is in runs/train like any other, so it can be resumed.
"""

import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import typer

from cli.actions.scores.model_sweep import check_scoring, score_grid
from cli.shared.console import print_line
from cli.shared.options import RayOptions
from cli.stages.observers import TrackedTraining
from cli.stages.training import SENDER_SECONDS, follow, tracked_training
from cli.trials.trial_commands import SearchTrial
from diffusion.choice.selection import describe_selection
from diffusion.config import Config, load
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED, TRAIN_RUNS
from diffusion.protocol.grid import grid
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.sampler import NonFiniteError
from diffusion.search.search_config import SearchConfig
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, Interrupted, LastingError, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.processes import die_with_parent
from diffusion.system.signals import StopRequest, stop_request
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.checkpoint.state_mirror import VARIABLE, StateMirror
from diffusion.train.distributed.launch import is_follower, world_size
from diffusion.train.plan import DenoiserPlan, plan_training, training_fingerprint
from diffusion.train.step_memory import OutOfMemory
from diffusion.train.trainer import Trainer
from diffusion.train.validation_loss import LOSS
from diffusion.trials import trial_runs
from diffusion.trials.trial_inputs import (
    Inputs,
    inputs_of_loss,
    inputs_of_scores,
    refuse_other_inputs,
    refuse_other_networks,
)
from diffusion.trials.trial_runs import About, Elapsed, TrialResult, TrialRunner, trial_dir
from flows.dvc_pull import fetch_networks
from flows.ray.trial_runner import STARTED, STARTER, ray_trials, run_process
from tracking.keys import (
    BEST,
    EVALUATION_FOLDER,
    PRUNED,
    SEARCH,
    SEARCH_KEY,
    SETTING,
    TRIAL,
    VERDICT,
    experiment_name,
    title_of,
)
from tracking.mlflow_pages import best_scores
from tracking.runs.base_models import fixed_base
from tracking.runs.run_lookup import training_name
from tracking.spool.event_log import Spool
from tracking.spool.sender import close_sender, start_sender
from tracking.store import tracking_uri

MODULE = ("-P", "-m", "cli.entry", "search-trial")  # arguments of Python, before the folder
LOCK = "lock"  # in a trial's folder
TRAINING_LOCK = "trial.lock"  # in the folder of a training: its trials run one after another


def trial_runner(
    options: RayOptions, config: Config, folder: Path, address: str | None = None
) -> AbstractContextManager[TrialRunner]:
    """Return what runs the trials in a folder: here, one by one in child processes, or on Ray."""
    if not options.ray:
        return nullcontext(TrialRunner(lambda trial: _run_in_process(trial_dir(folder, trial.number))))
    return ray_trials(
        address or config.sample.address,
        folder,
        (*MODULE, "--local"),
        at_once=options.max_parallel,
        cpus=options.cpus or 1,
        gpus=config.train.devices if isinstance(config.train.devices, int) else 1,
    )


def _run_in_process(folder: Path) -> TrialResult:
    """Run the trial in a child process, which frees its memory. Interrupted on a signal, after a save."""
    with stop_request() as stop:
        result = run_process([sys.executable, *MODULE, str(folder)], folder, stop)
        stop.raise_if_set()
    assert result is not None, "it was not stopped"
    return result


def run_trial(options: SearchTrial) -> None:
    """Run or resume the trial in the folder, and write its result to ended.json.

    It waits for another process of the same trial, such as one on an unreachable machine, and for other
    trials of the same training. A failure that its settings cause is a result. UsageError if the folder has
    no trial; other DiffctlErrors leave it without a result. On a signal, after a save, it raises typer.Exit
    if a search or verdict started it, which reports the stop, else Interrupted.
    """
    starter = os.environ.pop(STARTER, None)
    try:
        _run_trial(options, starter)
    except Interrupted as stop:
        if starter is None:
            raise
        raise typer.Exit(stop.exit_code) from None


def _run_trial(options: SearchTrial, starter: str | None) -> None:
    now = time.monotonic()
    startup = now - float(os.environ.pop(STARTED, now))  # before it may wait for another process
    folder = options.folder
    config = load(folder / PARAMS.name)
    if options.local:
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"runner": "local"})})
    if not folder.name.isdecimal():
        raise UsageError(f"{folder} is no trial: `diffctl search` and `diffctl verdict` make them")
    if starter is not None:  # a leftover training would block the next search
        die_with_parent(int(starter), "the search of this trial")
    fetch_networks(config)
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(config, store.meta, default_device())
    command = [sys.executable, *MODULE, str(folder)]
    paths = TRAIN_RUNS, folder / trial_runs.CURVE, folder / trial_runs.MODEL
    trainer = Trainer(plan, store, command, partial(print_line, "train"), *paths)
    if is_follower():
        return follow(trainer)
    training = TRAIN_RUNS / training_fingerprint(plan)
    with file_lock(folder / LOCK), file_lock(training / TRAINING_LOCK):
        if trial_runs.read_result(folder) is None:
            trial = TrialRun(folder, config, config.search)
            _check_start(trial, plan)
            with _timed(trial, startup):
                try:
                    result = _train_and_score(trial, trainer, plan)
                except DiffctlError as error:
                    if not _is_of_settings(error, trial):
                        raise
                    result = TrialResult("failed", reason=str(error)[:1000])
            refuse_other_inputs(trial.inputs(plan), trial.about.inputs, trial.search)
            trial_runs.write_result(folder, result)


def _check_start(trial: "TrialRun", plan: DenoiserPlan) -> None:
    """Raise DiffctlError for inputs that changed, wrong variables and missing GPUs."""
    refuse_other_inputs(trial.inputs(plan), trial.about.inputs, trial.search)
    tracking_uri()
    world_size(plan.train)
    if url := os.environ.get(VARIABLE):
        StateMirror(url, trial.folder)


def _is_of_settings(error: DiffctlError, trial: "TrialRun") -> bool:
    """Return whether the same trial would fail again, also with a free disk and restored files."""
    if isinstance(error, UsageError):  # such as that of a missing file
        return trial.has_files()
    return isinstance(error, LastingError | NonFiniteError | OutOfMemory)


@dataclass
class TrialRun:
    """A trial in its folder, which is two levels below that of its search, or of a verdict: no section."""

    folder: Path
    config: Config
    section: SearchConfig | None
    stop: StopRequest | None = None
    """The request to stop of the running training."""
    pruned_at: int | None = None
    """The step at which the study stopped the training, if it did."""
    is_new: bool = False
    """Whether this process began the training."""

    @property
    def search(self) -> Path:
        """The folder of the search."""
        return self.folder.parents[1]

    @cached_property
    def about(self) -> About:
        """The settings of the search or the verdict."""
        return read_checksummed_json(self.search / trial_runs.ABOUT, About)

    @property
    def is_by_loss(self) -> bool:
        """Whether its value is the validation loss, in a verdict by that, and not a score of images."""
        return self.section is None and self.about.search["metric"] == "loss"

    def inputs(self, plan: DenoiserPlan) -> Inputs:
        """Return what decides its scores next to its settings."""
        if self.is_by_loss:
            return inputs_of_loss(plan)
        cells = grid(self.config.sample, self.config.sweep)
        base = fixed_base(self.config.sample.base, self.about.bases)
        return inputs_of_scores(self.config.sample, self.config.evaluate, plan, cells, base)

    def has_files(self) -> bool:
        """Return whether the files that its scoring reads are there and not stale."""
        with suppress(DiffctlError):
            if not self.is_by_loss:
                check_scoring(self.config)
            return True
        return False

    def report(self, step: int, loss: float) -> None:
        """Report a validation loss, and request a save and stop if the study prunes the trial."""
        from diffusion.search.study import SearchStudy  # a verdict needs no Optuna

        assert self.stop is not None, "the training has started"
        assert self.section is not None, "a verdict prunes nothing"
        prune = SearchStudy(self.search, self.section).report(int(self.folder.name), step, loss)
        if prune and step < self.config.train.steps and self.stop.request():
            self.pruned_at = step


@contextmanager
def _timed(trial: TrialRun, startup: float) -> Iterator[None]:
    """Add the seconds of the process's start and of the block to those of earlier ones, however it ends."""
    before, started = trial_runs.read_elapsed(trial.folder), time.monotonic()
    try:
        yield
    finally:
        seconds = round(before.seconds + startup + time.monotonic() - started, 1)
        elapsed = Elapsed(seconds, is_full=before.is_full or trial.is_new)
        with suppress(OSError):  # a full disk, which is the error of the block
            trial_runs.write_elapsed(trial.folder, elapsed)


def _train_and_score(trial: TrialRun, trainer: Trainer, plan: DenoiserPlan) -> TrialResult:
    """Train the model of a trial and score its grid. In a search, add the scores to the training's run."""
    try:
        training = trainer.lead(partial(_tracked_trial, trial, plan))
    except Interrupted:
        if trial.pruned_at is None or trial.stop is None:
            raise
        trial.stop.clear()
        return TrialResult("pruned")
    if trial.is_by_loss:
        if not math.isfinite(training.validated.get("loss", 0.0)):  # the curve leaves it out
            return TrialResult("failed", reason="its validation loss is not finite")
        return TrialResult("done", _validation_loss(trial.folder / trial_runs.CURVE, plan.train.steps))
    config, folder = trial.config, training.run.folder
    inputs = trial.inputs(plan)
    document = score_trial(config, trial.folder / trial_runs.MODEL, trial.folder, trial.about, inputs)
    result = TrialResult("done", document.best.value)
    if trial.section is None:
        return result  # a verdict's scores are of one cell, and its training may be that of the pipeline
    with file_lock(folder / "lock"):
        spool = Spool(
            folder, training.run.key, training_name(config), experiment_name(title_of(config.data.name))
        )
        spool.result(best_scores(document))
        if document.training is not None:
            spool.tags({BEST: describe_selection(document.best), SETTING: document.training.setting})
        spool.artifact(trial.folder / trial_runs.SCORES, EVALUATION_FOLDER)
        spool.close("FINISHED")
    close_sender(start_sender(folder), SENDER_SECONDS["FINISHED"])
    return result


def score_trial(config: Config, model: Path, folder: Path, about: About, inputs: Inputs) -> ScoresDocument:
    """Score the grid of a model into the folder; DiffctlError for other networks than the inputs."""
    document = score_grid(config, model, folder, fixed_base(config.sample.base, about.bases))
    refuse_other_networks((cell.card for cell in document.cells.values()), inputs)
    return document


def _validation_loss(curve: Path, steps: int) -> float:
    """Return the EMA's validation loss after the last step; DiffctlError if the training has none."""
    with curve.open(encoding="utf-8", newline="") as file:
        *_, last = csv.DictReader(file)
    value = float(last.get(LOSS, "nan"))
    if int(last["step"]) != steps or not math.isfinite(value):
        found = f"the training has no {LOSS} after step {steps:,}: another command made it"
        raise DiffctlError(f"{found} with train.val_every null, so use --metric fd, or another train.seed")
    return value


@contextmanager
def _tracked_trial(
    trial: TrialRun, plan: DenoiserPlan, run: RunDir, stop: StopRequest
) -> Iterator[TrackedTraining]:
    """Track the training, in a search as a child run that its validation loss may prune."""
    trial.stop, trial.is_new = stop, newest_step(run.folder) == 0
    with tracked_training(plan, trial.config, run, stop) as training:
        training.is_trial = True
        training.repeats_validation = trial.is_by_loss
        tags = {SEARCH: trial.search.name, SEARCH_KEY: trial.about.key, TRIAL: str(int(trial.folder.name))}
        training.spool.tags({VERDICT: trial.about.key} if trial.section is None else tags)
        if trial.section is not None and trial.section.prune:
            training.on_validation = trial.report
        try:
            yield training
        finally:
            if trial.pruned_at is not None:
                training.spool.tags({PRUNED: str(trial.pruned_at)})
