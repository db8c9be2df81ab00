"""The state of a training before its first step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from diffusion.model.precision import memory_layout
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.system.memory import keep_freed_memory
from diffusion.system.registry import load_reference
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.sharding import shard_network
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS
from diffusion.train.plan import TrainPlan, build_task
from diffusion.train.pretrained import init_network
from diffusion.train.step_memory import translate_oom
from diffusion.train.train_config import OptimisationConfig
from diffusion.train.train_state import TrainState
from diffusion.train.train_step import ema_copy


def new_state(
    plan: TrainPlan,
    device: torch.device,
    group: ProcessGroup | None = None,
    network: nn.Module | None = None,
    process: NoiseProcess | None = None,
) -> TrainState:
    """Return step 0: random weights from the seed, or the plan's pretrained ones.

    A `network` and a `process` of a script are used instead of those that the plan describes.

    With several ranks in `group` the state is sharded if the plan requests it. Then these weights alone,
    before anything else is allocated, are ever complete in a process.
    """
    train, task = plan.train, build_task(plan)
    process = process or build_process(plan.process)
    with translate_oom(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # torch's initialisers use the global generator
            torch.manual_seed(counter_generator(task.weights_purpose, train.seed).initial_seed())
            network = network or task.network(plan.network)
            purpose = f"{task.weights_purpose} of the objective"
            torch.manual_seed(counter_generator(purpose, train.seed).initial_seed())
            objective = task.objective(process).to(device)
        groups = init_network(network, plan.init_from, plan)
        keep_freed_memory(device.type)
        network.train()
        shards = None
        if group and train.shard and group.world_size > 1:
            shards, network, groups = shard_network(network, groups, group)
        else:
            network.to(device)
            network.to(memory_format=memory_layout(plan.precision, device))  # type: ignore[call-overload]
        if own := list(objective.parameters()):  # last, since states number the weights in order
            groups = [*groups, {"params": own, "scale": 1.0}]
        optimizer = make_optimizer(train, network, groups)
        time_sampler = task.time_sampler(process)
        profiles = nn.ModuleList(ema_copy(network) for _ in train.sigma_rels)
        ema = ema_copy(network)
        ema_objective = ema_copy(objective) if objective.is_averaged else objective
        averaged = time_sampler, objective, ema_objective, profiles
        return TrainState(plan, network, ema, optimizer, *averaged, shards, code=list(plan.code))


def make_optimizer(
    train: OptimisationConfig, network: nn.Module, groups: Sequence[dict[str, Any]]
) -> Optimizer:
    """Return the section's optimiser of these parameter groups; the learning rate is set at every step."""
    entry = OPTIMIZERS[train.optimizer]
    decayed = [{"lr": 0.0, "weight_decay": train.weight_decay, **group} for group in groups]
    optimizer: Optimizer = load_reference(entry.builder)(
        decayed, network, entry.parse(train.optimizer_options)
    )
    return optimizer
