"""The objective of a diffusion model: the losses of its process."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from diffusion.model.model_file import Artefact
from diffusion.model.network_registry import build_network
from diffusion.process.denoiser import Condition, Network
from diffusion.process.losses import training_losses
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_samplers import build_time_sampler
from diffusion.train.objective import Batch, Objective


def _losses(network: Network, process: NoiseProcess, batch: Batch) -> dict[str, Tensor]:
    if batch.augmentation is not None:
        conditioned: Callable[..., Tensor] = network  # a network with a layer for it
        network = partial(conditioned, augmentation=batch.augmentation)
    condition = Condition(len(batch.t), batch.labels)
    return training_losses(network, process, batch.x_0, batch.t, batch.noise, condition)


DENOISER = Objective(build_network, _losses, build_time_sampler, Artefact, "train", "weights", "dropout")
