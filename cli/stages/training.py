"""The console, the spool and the sender of a training. They only observe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from torch import nn

from cli.shared.progress import above, progress
from cli.stages.validation import Validation, scored_images
from cli.stages.watch import ConsoleLine, SpoolObserver
from diffusion.code_digest import CodeSince
from diffusion.config import Config
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.evaluate.features.reference_features import find_or_make_reference
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationScorer
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED, REFERENCE
from diffusion.system.errors import Interrupted
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.distributed.process_group import RankFailed
from diffusion.train.loop import Diverged
from diffusion.train.observers import observer_guard
from diffusion.train.plan import DenoiserPlan, TrainPlan, plan_artefact
from diffusion.train.train_step import TrainState
from diffusion.train.trainer import Trainer
from diffusion.train.validation_loss import ValidationLoss
from tracking.keys import (
    CODE,
    DATA_DIGEST,
    FINGERPRINT,
    MODEL_FOLDER,
    RESUMED_FROM,
    experiment_name,
    git_tags,
    pretrained_tags,
    source_tags,
)
from tracking.mlflow_pages import note_tags, training_note
from tracking.runs.run_lookup import training_name
from tracking.spool.sender import start_sender
from tracking.spool.spool_writer import Spool, flatten

# Seconds that an unavailable MLflow may delay the end of a training; `diffctl sync` does the rest.
SENDER_SECONDS = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}


@dataclass(frozen=True)
class ConsoleObserver:
    """A training that is reported on the console under the name of its stage."""

    name: str
    run: RunDir
    observer: ConsoleLine

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """Print the folder of the training, and where it resumes or why it starts from scratch."""
        step, total = state.step, state.plan.train.steps
        how = f"resuming after step {step:,} of {total:,}" if step else f"{total:,} steps"
        print_line(self.name, f"{how}, state in {self.run.folder}")
        if self.run.start:
            print_line(self.name, self.run.start.describe())
        elif not step and (changes := self.run.changes()):
            print_line(self.name, changes)
        if changed := state.change_of_code():
            print_line(self.name, _describe_change(*changed))

    def save(self, state: TrainState) -> None:
        """Save the state."""
        self.run.save(state)

    def finished(self, model: Path) -> None:
        """Print the path of the model file."""
        print_line("model", str(model))


@dataclass(frozen=True)
class TrackedTraining(ConsoleObserver):
    """A training that is also logged to MLflow."""

    observer: SpoolObserver
    spool: Spool

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """As the base class; a score that a stop interrupted is repeated now."""
        super().announce(state, ema)
        self.observer.catch_up(state.step, ema)

    def save(self, state: TrainState) -> None:
        """Save the state, after an fsync of the logs of its steps."""
        with self.observer.paused():
            self.spool.sync()
            super().save(state)

    def finished(self, model: Path) -> None:
        """Add the model file to the spool and print its path."""
        self.spool.artifact(model, folder=MODEL_FOLDER)
        super().finished(model)

    def identity(self) -> dict[str, Any]:
        """Return the content of models/run.json: the key of the MLflow run."""
        return {"key": self.run.key, "fingerprint": self.run.folder.name}


def stage_command(name: str) -> list[str]:
    """Return the command that starts a further process of a stage's training."""
    return [sys.executable, "-m", "cli.entry", "stage", name]


def print_line(name: str, sentence: str) -> None:
    """Print a line on stderr with the name of the stage."""
    above(f"{name}: {sentence}")


def _describe_change(before: CodeSince, now: CodeSince) -> str:
    if before.digest != now.digest:
        return f"the code has changed since these steps ({before.digest}, now {now.digest})"
    return f"these steps used torch {before.torch}, the next ones use {now.torch}"


def follow(trainer: Trainer) -> None:
    """Run a further process of a training; typer.Exit when it stops, which rank 0 reports."""
    try:
        trainer.follow()
    except (Interrupted, RankFailed, Diverged) as error:
        raise typer.Exit(error.exit_code) from None


def validation_loss(plan: TrainPlan) -> ValidationLoss | None:
    """Return the validation loss on the test split; None if it is off or not possible."""
    if plan.train.val_every is not None:
        with observer_guard("validation loss"):
            return ValidationLoss(plan, open_store(PREPARED / "test", PreparedMeta))
    return None


@contextmanager
def console_training(name: str, plan: TrainPlan, run: RunDir, stop: StopRequest) -> Iterator[ConsoleObserver]:
    """Report a training on the console."""
    heldout = validation_loss(plan)
    with progress(name, per=plan.train.batch_size) as show:
        yield ConsoleObserver(name, run, ConsoleLine(run, show, heldout))


@contextmanager
def tracked_training(
    plan: DenoiserPlan, config: Config, run: RunDir, stop: StopRequest
) -> Iterator[TrackedTraining]:
    """Track a training in MLflow; the end of the block decides the status of its run."""
    spool = Spool(run.folder, run.key, training_name(config), experiment_name(plan.data.name))
    spool.params(config.model_dump(mode="json"))
    tags = {FINGERPRINT: run.folder.name, DATA_DIGEST: plan.data.digest}
    made_by = plan.code[-1]
    tags |= {"diffctl.precision": plan.precision, CODE: made_by.digest, "diffctl.torch": made_by.torch}
    if run.start:
        tags[RESUMED_FROM] = f"{run.start.folder.name} after step {run.start.step}"
    tags |= pretrained_tags(plan.lineage)
    spool.tags({**tags, **git_tags(Path()), **source_tags("diffctl stage train")})
    spool.tags(note_tags(training_note(flatten(config.model_dump(mode="json")), run.folder.name)))
    spool.dataset(plan.data.name, plan.data.digest, plan.data.classes)
    sender = start_sender(run.folder)
    status = "FAILED"
    try:
        validation = _validation(run, plan, config, spool, stop) if plan.train.eval_every else None
        heldout = validation_loss(plan)
        with progress("train", per=plan.train.batch_size) as show:
            yield TrackedTraining(
                "train", run, SpoolObserver(run, plan, spool, show, validation, heldout), spool
            )
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        spool.close(status)
        sender.close(SENDER_SECONDS[status])


def _validation(
    run: RunDir, plan: DenoiserPlan, config: Config, spool: Spool, stop: StopRequest
) -> Validation:
    """Return the scorer of EMA checkpoints; missing inputs are reported before the training."""
    section = config.evaluate
    extractor = space_extractor(section.spaces[0])
    with progress("reference") as show:
        places = (REFERENCE, run.folder / "reference")
        reference = find_or_make_reference(section, extractor, PREPARED, places, show)
    scorer = ValidationScorer(scored_images(config), extractor, reference, section)
    folder, keep = run.folder / "checkpoints", plan.train.keep
    checkpoints = ScoredCheckpoints(folder, keep, scorer.ranked_by, scorer.card)
    return Validation(plan_artefact(plan), scorer, checkpoints, spool, stop)
