"""`diffctl stage classifier`: train the classifier for guidance. Opt-in, and no stage of the pipeline."""

from functools import partial
from typing import Annotated

import typer

from cli.stages.bodies import same_stage


def classifier(
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the saved state and start again.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Go on although the code has changed.")] = False,
) -> None:
    """Train params.yaml's classifier of noised images, or go on: models/classifier.safetensors."""
    from cli.stages.preflight import whole_config
    from cli.stages.training import follow, say, told
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import PreparedMeta
    from diffusion.layout import CLASSIFIER, CLASSIFIER_CURVE, CLASSIFIER_RUNS, PREPARED
    from diffusion.system.devices import default_device
    from diffusion.system.params import load_sections
    from diffusion.train.classifier_plan import plan_classifier
    from diffusion.train.distributed.launch import is_follower
    from diffusion.train.train_config import ClassifierSections
    from diffusion.train.trainer import Trainer, TrainPaths

    whole_config()
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_classifier(load_sections(ClassifierSections), store.meta, default_device())
    places = TrainPaths(CLASSIFIER_RUNS, CLASSIFIER_CURVE, CLASSIFIER)
    trainer = Trainer(plan, store, places, same_stage("classifier"), partial(say, "classifier"))
    if is_follower():
        return follow(trainer)
    trainer.lead(partial(told, "classifier", plan), fresh=fresh, keep=keep)
    say("classifier", f"`diffctl sample --classifier {CLASSIFIER}` guides by it")
