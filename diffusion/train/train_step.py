"""A training state and one optimiser step: step k's batch, timesteps and noise come from (seed, k) alone.

So a killed training resumes from its newest state, bitwise equal on a CPU. The state consists of the
counters, the weights, their averages and the optimiser's moments. The averages are an EMA with a warm-up, and
power-function averages with a relative width σ_rel (EDM2, Karras et al. 2024, 2312.02696, sec. 3).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.layout import STARTS
from diffusion.model.power_ema import newest_weight
from diffusion.model.precision import memory_layout
from diffusion.process.noise import counter_generator
from diffusion.process.process_registry import build_process
from diffusion.process.time_samplers import TimeSampler
from diffusion.system.memory import keep_freed_memory
from diffusion.train.batch import Batch
from diffusion.train.checkpoint.resumable import ModuleState, OptimizerState, Resumable, StatePart
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.checkpoint.tensor_stream import without_prefix
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.sharding import Shards, is_sharded, shard_network
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.lr_schedule import learning_rate
from diffusion.train.observers import band_sums
from diffusion.train.optimizers import make_optimizer
from diffusion.train.plan import TrainPlan, build_objective
from diffusion.train.pretrained import init_network
from diffusion.train.step_memory import translate_oom

IGNORES_FOUND_INF = ("mps",)  # devices whose fused optimiser ignores found_inf (pytorch#186360)


@dataclass
class TrainState(Resumable):
    """A training after `step` steps: the network and its EMA, which becomes the result.

    `ema_profiles` are power-function averages with the plan's `sigma_rels`. If `shards` is set, all of them
    and the optimiser's moments are this rank's shards.
    """

    plan: TrainPlan
    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    time_sampler: TimeSampler
    ema_profiles: nn.ModuleList = field(default_factory=nn.ModuleList)
    shards: Shards | None = None

    def parts(self) -> dict[str, StatePart]:
        """Return weights, EMA, moments, the time sampler's statistics, and EMA profiles."""
        return {
            "network": ModuleState(self.network),
            "ema": ModuleState(self.ema),
            "optimizer": OptimizerState(self.optimizer),
            "timesteps": self.time_sampler,  # the name in stored states
            "ema_profiles": ModuleState(self.ema_profiles),
        }

    def restore(self, saved: SavedState) -> None:
        """Restore the saved state; ignore EMA profiles that this training does not track."""
        if not self.plan.train.sigma_rels:
            saved = saved._replace(tensors=without_prefix(saved.tensors, "ema_profiles."))
        super().restore(self.shards.shard_state(self, saved) if self.shards else saved)


def new_state(
    plan: TrainPlan, device: torch.device, starts: Path = STARTS, group: ProcessGroup | None = None
) -> TrainState:
    """Return step 0: random weights from the seed, or the plan's pretrained ones from the folder `starts`.

    With several ranks in `group` the state is sharded if the plan requests it. Then these weights alone,
    before anything else is allocated, are ever complete in a process.
    """
    train, objective = plan.train, build_objective(plan)
    with translate_oom(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # torch's initialisers use the global generator
            torch.manual_seed(counter_generator(objective.purposes.weights, train.seed).initial_seed())
            network = objective.network(plan.network)
        groups = init_network(network, plan.init_from, plan.network, plan.data.classes, starts)
        keep_freed_memory(device.type)
        network.train()
        shards = None
        if group and is_sharded(train, group):
            shards, network, groups = shard_network(network, groups, group)
        else:
            network.to(device)
            network.to(memory_format=memory_layout(plan.precision, device))  # type: ignore[call-overload]
        optimizer = make_optimizer(train, network, groups)
        time_sampler = objective.time_sampler(build_process(plan.process))
        profiles = new_profiles(network, train.sigma_rels)
        ema = ema_copy(network)
        return TrainState(plan, network, ema, optimizer, time_sampler, profiles, shards, code=list(plan.code))


def train_step(state: TrainState, gradients: GradientAccumulator, batch: Batch) -> dict[str, Tensor]:
    """Make one optimiser step in place; return its means as device tensors, without a synchronisation.

    A non-finite loss or gradient changes neither weights nor moments nor EMA: the optimiser skips the step,
    and the means are non-finite.
    """
    train = state.plan.train
    losses, weights, t, log_snr = gradients(batch, state.step)
    norm = gradients.clip(state.network.parameters(), train.grad_clip or math.inf)
    means = {name: (value * weights).mean() for name, value in losses.items()} | {"grad_norm": norm}
    finite = torch.stack(list(means.values())).isfinite().all()
    means |= band_sums(losses["loss"], log_snr)
    if state.time_sampler.learns and finite:
        state.time_sampler.update(t, losses["loss"])
    for group in state.optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(train.lr, state.step, train.steps)
    state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler sets it
    if norm.device.type not in IGNORES_FOUND_INF or finite:
        state.optimizer.step()
    ema_update(state.ema, state.network, warmed_decay(train.ema_decay, state.step), finite)
    update_profiles(state.ema_profiles, state.network, train.sigma_rels, state.step + 1)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means


def ema_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode that takes no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def warmed_decay(decay: float, step: int) -> float:
    """Return min(decay, (1+k)/(10+k)) for update k, so that early averages forget the initialisation."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, decay: float, finite: Tensor) -> None:
    """ema ← decay·ema + (1 − decay)·network in place, if `finite`, which the host does not wait for."""
    averages: list[Tensor] = list(ema.parameters())
    weights: list[Tensor] = list(network.parameters())
    part = (1 - decay) * finite.to(averages[0].dtype)
    if part.device.type == "cpu":
        torch._foreach_lerp_(averages, weights, [part] * len(averages))
    else:
        lerp_tensors(averages, weights, part)


def lerp_tensors(averages: list[Tensor], weights: list[Tensor], part: Tensor) -> None:
    """averages ← averages + part·(weights − averages) in place, in few kernels; `part` is on their device."""
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, part)
    torch._foreach_add_(averages, list(differences))


def new_profiles(network: nn.Module, sigma_rels: Sequence[float]) -> nn.ModuleList:
    """Return a copy of the network per σ_rel, which the first update overwrites."""
    return nn.ModuleList(ema_copy(network) for _ in sigma_rels)


@torch.no_grad()
def update_profiles(
    profiles: nn.ModuleList, network: nn.Module, sigma_rels: Sequence[float], steps: int
) -> None:
    """Add the weights after `steps` steps to each average, in place.

    A non-finite step leaves the weights unchanged, so that the previous ones count once more.
    """
    for profile, sigma_rel in zip(profiles, sigma_rels, strict=True):
        torch._foreach_lerp_(
            list(profile.parameters()), list(network.parameters()), newest_weight(sigma_rel, steps)
        )
