"""The objective of a classifier of noised images: cross-entropy at uniform t (ADM, 2105.05233, sec. 4.1)."""

from collections.abc import Sequence

import torch.nn.functional as F

from diffusion.code_digest import CodeSince
from diffusion.model.classifier import Classifier, ClassifierArtefact
from diffusion.model.model_config import NetworkSpec
from diffusion.model.unet_config import UNetSpec
from diffusion.process.denoiser_output import Network
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.timestep_samplers import UniformSampler
from diffusion.train.batch import Batch
from diffusion.train.objective import Losses, Objective, Purposes
from diffusion.train.plan import TrainPlan, artefact_values


def _network(spec: NetworkSpec) -> Classifier:
    assert isinstance(spec, UNetSpec), "a classifier is an encoder of the U-Net"
    return Classifier(spec)


def _losses(network: Network, process: NoiseProcess, batch: Batch) -> Losses:
    """Per image, (B,): the cross-entropy of its class in nats, and whether that class is the likeliest."""
    assert batch.labels is not None, "plan_classifier() refuses data without classes"
    x_t = process.q_sample(batch.x_0, batch.index, batch.noise)
    logits = network(x_t, batch.index.to(x_t.device), None)
    hit = (logits.argmax(1) == batch.labels).to(logits.dtype)
    return {"loss": F.cross_entropy(logits, batch.labels, reduction="none"), "accuracy": hit}


def _timesteps(process: NoiseProcess) -> UniformSampler:
    return UniformSampler(process.timesteps)


def _result(plan: TrainPlan, code: Sequence[CodeSince]) -> ClassifierArtefact:
    return ClassifierArtefact.model_validate(artefact_values(plan, code))


CLASSIFIER = Objective(
    _network,
    _losses,
    _timesteps,
    Purposes("classifier", "classifier weights", "classifier dropout"),
    _result,
)
