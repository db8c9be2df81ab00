"""The stage `classifier`: a classifier for guidance, outside of the pipeline."""

from functools import partial

from cli.commands.pipeline import TrainingOptions
from cli.shared.console import print_line
from cli.stages.training import console_training, follow, stage_command
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import CLASSIFIER, CLASSIFIER_CURVE, CLASSIFIER_RUNS, PREPARED
from diffusion.system.devices import default_device
from diffusion.system.params import load_sections
from diffusion.train.classifier_training import plan_classifier
from diffusion.train.distributed.launch import is_follower
from diffusion.train.train_config import ClassifierSections
from diffusion.train.trainer import Trainer


def run_stage(options: TrainingOptions) -> None:
    """Train the classifier of params.yaml, or resume its training."""
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_classifier(load_sections(ClassifierSections), store.meta, default_device())
    paths = CLASSIFIER_RUNS, CLASSIFIER_CURVE, CLASSIFIER
    trainer = Trainer(plan, store, stage_command("classifier"), partial(print_line, "classifier"), *paths)
    if is_follower():
        return follow(trainer)
    trainer.lead(partial(console_training, "classifier", plan), fresh=options.fresh, keep=options.keep)
    print_line("classifier", f"`diffctl sample --classifier {CLASSIFIER}` uses it for guidance")
