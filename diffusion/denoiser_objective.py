"""The objective of a diffusion model: DDPM's and iDDPM's losses of what the network says of noised images."""

from diffusion.condition import Condition
from diffusion.draws import Batch
from diffusion.forward_process import Process
from diffusion.losses import training_losses
from diffusion.model_registry import build_network
from diffusion.objective import Losses, Objective, Purposes
from diffusion.prediction import Network
from diffusion.resolve import result_of
from diffusion.timesteps import T_SAMPLERS, UniformSampler


def _losses(network: Network, process: Process, batch: Batch) -> Losses:
    condition = Condition(len(batch.index), batch.labels)
    return training_losses(network, process, batch.x_0, batch.index, batch.noise, condition)


def _timesteps(process: Process) -> UniformSampler:
    return T_SAMPLERS[process.config.t_sampler](process.timesteps)


DENOISER = Objective(build_network, _losses, _timesteps, Purposes("train", "weights", "dropout"), result_of)
