"""The surroundings of a training: the terminal, the spool and its sender. All of it only watches."""

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
from cli.stages.watch import LiveLine, Watch
from diffusion.code_digest import CodeSince
from diffusion.config import Config
from diffusion.evaluate.features.extractors import configured_extractor
from diffusion.evaluate.features.reference_features import find_or_make_reference
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationScorer
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED, REFERENCE
from diffusion.system.errors import Interrupted
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.distributed.process_group import RankFailed
from diffusion.train.loop import Diverged, TrainState
from diffusion.train.observers import observer_guard
from diffusion.train.plan import DenoiserPlan, TrainPlan, plan_artefact
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
from tracking.runs.run_names import training_name
from tracking.spool.sender import start_sender
from tracking.spool.spool_writer import Spool, flatten

# What an unreachable MLflow may cost at the end of a training; `diffctl sync` does the rest.
SENDER_SECONDS = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}


@dataclass(frozen=True)
class Told:
    """A training that the terminal tells of, under its stage's name."""

    name: str
    run: RunDir
    observer: LiveLine

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """Say where the training lies, where it starts, and if that is at nothing, what is new about it."""
        step, total = state.step, state.plan.train.steps
        how = f"going on after step {step:,} of {total:,}" if step else f"{total:,} steps"
        say(self.name, f"{how}, state in {self.run.folder}")
        if self.run.start:
            say(self.name, self.run.start.describe())
        elif not step and (changes := self.run.changes()):
            say(self.name, changes)
        if changed := state.change_of_code():
            say(self.name, _said_of(*changed))

    def save(self, state: TrainState) -> None:
        """Keep the state."""
        self.run.save(state)

    def finished(self, model: Path) -> None:
        """Say where the model file is."""
        say("model", str(model))


@dataclass(frozen=True)
class Tracked(Told):
    """A training that MLflow hears of, too."""

    observer: Watch
    spool: Spool

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """As any; a score that the stop before it cut short is made now."""
        super().announce(state, ema)
        self.observer.catch_up(state.step, ema)

    def save(self, state: TrainState) -> None:
        """Keep the state; what it will not replay is in the spool, on the disk, before it counts."""
        with self.observer.paused():
            self.spool.sync()
            super().save(state)

    def finished(self, model: Path) -> None:
        """Keep the model file for MLflow and say where it is."""
        self.spool.artifact(model, folder=MODEL_FOLDER)
        super().finished(model)

    def identity(self) -> dict[str, Any]:
        """What models/run.json says: the training's key, by which its MLflow run is found."""
        return {"key": self.run.key, "fingerprint": self.run.folder.name}


def stage_command(name: str) -> list[str]:
    """Return the command that starts a further process of a stage's training."""
    return [sys.executable, "-m", "cli.entry", "stage", name]


def say(name: str, sentence: str) -> None:
    """A line on stderr, under the stage's name."""
    above(f"{name}: {sentence}")


def _said_of(before: CodeSince, now: CodeSince) -> str:
    if before.digest != now.digest:
        return f"the code has changed since it made these steps ({before.digest}, now {now.digest})"
    return f"these steps were made by torch {before.torch}, the following ones are by {now.torch}"


def follow(trainer: Trainer) -> None:
    """Be one more process of a training; typer's Exit when that stops, which the first process says."""
    try:
        trainer.follow()
    except (Interrupted, RankFailed, Diverged) as error:
        raise typer.Exit(error.exit_code) from None


def held_out(plan: TrainPlan) -> ValidationLoss | None:
    """What measures the loss over the test split; None where it is not asked for or cannot be."""
    if plan.train.val_every is not None:
        with observer_guard("validation loss"):
            return ValidationLoss(plan, open_store(PREPARED / "test", PreparedMeta))
    return None


@contextmanager
def told(name: str, plan: TrainPlan, run: RunDir, stop: StopRequest) -> Iterator[Told]:
    """Tell the terminal of a training."""
    heldout = held_out(plan)
    with progress(name, per=plan.train.batch_size) as show:
        yield Told(name, run, LiveLine(run, show, heldout))


@contextmanager
def tracked(plan: DenoiserPlan, config: Config, run: RunDir, stop: StopRequest) -> Iterator[Tracked]:
    """Watch a training: its spool is open and being sent; how the block ends becomes the run's status."""
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
        heldout = held_out(plan)
        with progress("train", per=plan.train.batch_size) as show:
            yield Tracked("train", run, Watch(run, plan, spool, show, validation, heldout), spool)
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
    """What scores the EMA in the midst of the training; what is missing for it is told before that begins."""
    section = config.evaluate
    extractor = configured_extractor(section)
    with progress("reference") as show:
        places = (REFERENCE, run.folder / "reference")
        reference = find_or_make_reference(section, extractor, PREPARED, places, show)
    scorer = ValidationScorer(scored_images(config), extractor, reference, section)
    folder, keep = run.folder / "checkpoints", plan.train.keep
    checkpoints = ScoredCheckpoints(folder, keep, scorer.ranked_by, scorer.card)
    return Validation(plan_artefact(plan), scorer, checkpoints, spool, stop)
