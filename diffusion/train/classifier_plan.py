"""From the section `classifier` and the prepared data to the description of the classifier that they give."""

from typing import Any, Literal

import torch
from pydantic import ValidationError

from diffusion.code_digest import code_since
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from diffusion.system.section import explain
from diffusion.train.plan import TrainPlan, make_data_card, training_code
from diffusion.train.precision import resolve_precision
from diffusion.train.train_config import ClassifierSections, ClassifierTrainConfig


class ClassifierPlan(TrainPlan):
    """A classifier that is still to be trained."""

    OBJECTIVE = "diffusion.train.classifier_objective:CLASSIFIER"

    kind: Literal["classifier"] = "classifier"
    network: UNetSpec
    train: ClassifierTrainConfig


def plan_classifier(config: ClassifierSections, meta: dict[str, Any], device: torch.device) -> ClassifierPlan:
    """What training a classifier will give, from the training split's meta; UsageError where they do not fit.

    It learns from images noised by the model's process.
    """
    section, count = config.classifier, len(meta["classes"])
    if section is None:
        raise UsageError("params.yaml has no classifier section: give it one with model and train")
    if count < 2:
        raise UsageError(f"a classifier needs at least two classes, and {meta['name']} has {count}")
    try:
        network = UNetSpec(
            **{**section.model.model_dump(), "class_cond": True},
            image_size=meta["image_size"],
            in_channels=meta["channels"],
            out_channels=count,
            num_classes=count,
        )
    except ValidationError as error:
        raise UsageError(explain(error, "params.yaml with this data: classifier.model", UNetSpec)) from None
    return ClassifierPlan(
        network=network,
        process=config.process,
        train=section.train,
        data=make_data_card(meta, config.data.flip, labelled=True),
        step=section.train.steps,
        precision=resolve_precision(section.train.precision, device),
        code=(code_since(0, training_code(ClassifierPlan, config.process, network)),),
    )
