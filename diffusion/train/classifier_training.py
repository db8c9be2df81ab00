"""The training of a classifier of noised images: its plan, and its cross-entropy (ADM, sec. 4.1).

Its times have the default distribution of the process, such as log-normal for `edm`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from diffusion.model.classifier import Classifier, ClassifierArtefact
from diffusion.model.unet_config import UNetSpec
from diffusion.process.objective import Batch, Objective, TrainedNetwork
from diffusion.process.time_samplers import default_time_sampler
from diffusion.system.errors import UsageError
from diffusion.system.section import explain
from diffusion.train.plan import TrainPlan, make_plan
from diffusion.train.task import Task
from diffusion.train.train_config import ClassifierSections, ClassifierTrainConfig


class ClassifierPlan(TrainPlan):
    """The plan of a classifier."""

    TASK = "diffusion.train.classifier_training:CLASSIFIER"

    kind: Literal["classifier"] = "classifier"
    network: UNetSpec
    train: ClassifierTrainConfig


def plan_classifier(config: ClassifierSections, meta: dict[str, Any], device: torch.device) -> ClassifierPlan:
    """Plan a classifier's training on a split with this `meta`; UsageError if they do not fit."""
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
    return make_plan(ClassifierPlan, config, network, section.train, meta, device)


class ClassError(Objective):
    """Each image's cross-entropy in nats, and whether its class is the likeliest."""

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`, (B,) each."""
        assert batch.labels is not None, "plan_classifier() refuses data without classes"
        x_t = self.process.q_sample(batch.x_0, batch.t, batch.noise)
        logits = network.output(x_t, batch.t, batch.condition.unlabelled())
        hit = (logits.argmax(1) == batch.labels).to(logits.dtype)
        return {"loss": F.cross_entropy(logits, batch.labels, reduction="none"), "accuracy": hit}


PURPOSES = "classifier", "classifier weights", "classifier dropout"
CLASSIFIER = Task(Classifier, ClassError, default_time_sampler, ClassifierArtefact, *PURPOSES)
