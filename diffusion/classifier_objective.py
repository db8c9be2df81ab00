"""The objective of a classifier of noised images: cross-entropy at uniform t (ADM, 2105.05233, sec. 4.1)."""

from collections.abc import Sequence

import torch.nn.functional as F

from diffusion.classifier import Classifier, ClassifierArtefact
from diffusion.code import CodeSince
from diffusion.draws import Batch
from diffusion.forward_process import Process
from diffusion.model_config import NetworkSpec
from diffusion.objective import Losses, Objective, Purposes
from diffusion.prediction import Network
from diffusion.resolve import TrainPlan, result_values
from diffusion.shape import UNetSpec
from diffusion.timesteps import UniformSampler


def _network(spec: NetworkSpec) -> Classifier:
    assert isinstance(spec, UNetSpec), "a classifier is an encoder of the U-Net"
    return Classifier(spec)


def _losses(network: Network, process: Process, batch: Batch) -> Losses:
    """Per image, (B,): the cross-entropy of its class in nats, and whether that class is the likeliest."""
    assert batch.labels is not None, "resolve_classifier() refuses data without classes"
    logits = network(process.q_sample(batch.x_0, batch.index, batch.noise), batch.index, None)
    hit = (logits.argmax(1) == batch.labels).to(logits.dtype)
    return {"loss": F.cross_entropy(logits, batch.labels, reduction="none"), "accuracy": hit}


def _timesteps(process: Process) -> UniformSampler:
    return UniformSampler(process.timesteps)


def _result(plan: TrainPlan, code: Sequence[CodeSince]) -> ClassifierArtefact:
    return ClassifierArtefact.model_validate(result_values(plan, code))


CLASSIFIER = Objective(
    _network,
    _losses,
    _timesteps,
    Purposes("classifier", "classifier weights", "classifier dropout"),
    _result,
)
