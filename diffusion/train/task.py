"""The two kinds of training: what is trained, by which objective, and from which random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from diffusion.model.model_file import Artefact
from diffusion.model.network_registry import build_network
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.objective import Objective, build_objective
from diffusion.process.time_samplers import TimeSampler, build_time_sampler


@dataclass(frozen=True)
class Task:
    """A kind of training.

    `network` builds the network from the plan's spec, with weights from the global generator, and `objective`
    its losses. `time_sampler` makes the sampler of t. `artefact` is the class of the model file's metadata.
    The purposes name random generators, so that trainings of two kinds share no draw.
    """

    network: Callable[[Any], nn.Module]
    objective: Callable[[NoiseProcess], Objective]
    time_sampler: Callable[[NoiseProcess], TimeSampler]
    artefact: type[Artefact]
    steps_purpose: str
    weights_purpose: str
    dropout_purpose: str


DENOISER = Task(build_network, build_objective, build_time_sampler, Artefact, "train", "weights", "dropout")
