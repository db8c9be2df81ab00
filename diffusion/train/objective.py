"""What a training is for: the network, what it learns by, and what of it goes into a model file.

The loop knows no more of it. A further objective is a module with one, and a plan that names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from diffusion.code_digest import CodeSince
from diffusion.model.model_config import NetworkSpec
from diffusion.model.model_file import Artefact
from diffusion.process.denoiser_output import Network
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.timestep_samplers import UniformSampler
from diffusion.train.batch import Batch
from diffusion.train.plan import TrainPlan

Losses = dict[str, Tensor]
"""Losses by name, (B,) each, `loss` first, which is what the network is trained by."""


class Purposes(NamedTuple):
    """What the generators of a training are named by: trainings of two objectives share no draw."""

    steps: str
    weights: str
    dropout: str


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    `network` builds it from the plan's spec, with weights from the global generator. `losses` are of a
    micro-batch, whose images the process noises; the network sees (x_t, t, labels or None). `timesteps` makes
    the sampler of t. `result` is what the model file says of itself, where the code given made the steps.
    """

    network: Callable[[NetworkSpec], nn.Module]
    losses: Callable[[Network, NoiseProcess, Batch], Losses]
    timesteps: Callable[[NoiseProcess], UniformSampler]
    purposes: Purposes
    result: Callable[[TrainPlan, Sequence[CodeSince]], Artefact]
