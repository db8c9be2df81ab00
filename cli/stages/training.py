"""The console, the spool and the sender of a training. They only observe."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cli.shared.console import progress
from cli.stages.observers import ConsoleTraining, TrackedTraining, Validation
from diffusion.config import Config
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.evaluate.references import find_or_make_reference
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationScorer, scored_images
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED, REFERENCE
from diffusion.system.errors import Interrupted
from diffusion.system.processes import PYTHON_MODULE
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.distributed.process_group import RankFailed
from diffusion.train.loop import Diverged
from diffusion.train.observers import observer_guard
from diffusion.train.plan import DenoiserPlan, TrainPlan, plan_artefact
from diffusion.train.train_config import TrainSections
from diffusion.train.trainer import Trainer
from diffusion.train.validation_loss import ValidationLoss
from tracking import keys
from tracking.keys import title_of
from tracking.mlflow_pages import note_tags, training_note
from tracking.runs.run_lookup import training_name
from tracking.spool.event_log import Spool, end_discarded, flatten
from tracking.spool.events import EndStatus
from tracking.spool.sender import close_sender, start_sender

# Seconds that an unavailable MLflow may delay the end of a training; `diffctl sync` does the rest.
SENDER_SECONDS = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}


def stage_command(name: str) -> list[str]:
    """Return the command that starts a further process of a stage's training."""
    return [*PYTHON_MODULE, "cli.entry", "stage", name]


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
def console_training(name: str, plan: TrainPlan, run: RunDir, stop: StopRequest) -> Iterator[ConsoleTraining]:
    """Report a training on the console."""
    heldout = validation_loss(plan)
    with progress(name, per=plan.train.batch_size) as show:
        yield ConsoleTraining(name, run, show, heldout)


@contextmanager
def tracked_training(
    plan: DenoiserPlan, config: Config, run: RunDir, stop: StopRequest
) -> Iterator[TrackedTraining]:
    """Track a training in MLflow; the end of the block decides the status of its run."""
    end_discarded(run.folder)
    spool = Spool(run.folder, run.key, training_name(config), keys.experiment_name(title_of(plan.data.name)))
    values, made_by = config.model_dump(mode="json", include={*TrainSections.model_fields}), plan.code[-1]
    spool.params(values)
    tags = {keys.FINGERPRINT: run.folder.name, keys.DATA_DIGEST: plan.data.digest}
    tags |= {"diffctl.precision": plan.precision, keys.CODE: made_by.digest, "diffctl.torch": made_by.torch}
    tags["diffctl.version"] = made_by.diffctl
    if run.start:
        tags[keys.RESUMED_FROM] = f"{run.start.folder.name} after step {run.start.step}"
    tags |= keys.pretrained_tags(plan.lineage) | note_tags(training_note(flatten(values), run.folder.name))
    spool.tags({**tags, **keys.git_tags(), **keys.source_tags("diffctl stage train")})
    spool.dataset(plan.data.name, plan.data.digest, plan.data.classes)
    sender = start_sender(run.folder)
    status: EndStatus = "FAILED"
    try:
        validation = _validation(run, plan, config, stop) if plan.train.eval_every else None
        heldout = validation_loss(plan)
        with progress("train", per=plan.train.batch_size) as show:
            training = TrackedTraining(run, plan, spool, show, validation, heldout)
            with observer_guard("real images in previews"):
                training.real = open_store(PREPARED / "test", PreparedMeta)
            yield training
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        spool.close(status)
        close_sender(sender, SENDER_SECONDS[status])


def _validation(run: RunDir, plan: DenoiserPlan, config: Config, stop: StopRequest) -> Validation:
    """Return the scorer of EMA checkpoints; missing inputs are reported before the training."""
    section = config.evaluate
    extractor = space_extractor(section.spaces[0])
    with progress("reference") as show:
        places = (REFERENCE, run.folder / "reference")
        reference = find_or_make_reference(section, extractor, PREPARED, places, show)
    scorer = ValidationScorer(scored_images(config), extractor, reference, section)
    folder, keep, artefact = run.folder / "checkpoints", plan.train.keep, plan_artefact(plan)
    checkpoints = ScoredCheckpoints(folder, keep, scorer.ranked_by, scorer.card(artefact))
    return Validation(artefact, scorer, checkpoints, stop)
