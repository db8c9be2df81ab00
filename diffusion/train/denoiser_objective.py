"""The objective of a diffusion model: DDPM's and iDDPM's losses of what the network says of noised images."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from diffusion.model.network_registry import build_network
from diffusion.process.condition import Condition
from diffusion.process.denoiser_output import Network
from diffusion.process.losses import training_losses
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.timestep_samplers import T_SAMPLERS, UniformSampler
from diffusion.train.batch import Batch
from diffusion.train.objective import Losses, Objective, Purposes
from diffusion.train.plan import plan_artefact


def _losses(network: Network, process: NoiseProcess, batch: Batch) -> Losses:
    if batch.augmentation is not None:
        told: Callable[..., Tensor] = network  # one that has a layer for it
        network = partial(told, augmentation=batch.augmentation)
    condition = Condition(len(batch.index), batch.labels)
    return training_losses(network, process, batch.x_0, batch.index, batch.noise, condition)


def _timesteps(process: NoiseProcess) -> UniformSampler:
    return T_SAMPLERS[process.config.t_sampler](process.timesteps)


DENOISER = Objective(
    build_network, _losses, _timesteps, Purposes("train", "weights", "dropout"), plan_artefact
)
