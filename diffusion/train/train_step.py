"""A training state and one optimiser step: step k's batch, timesteps and noise come from (seed, k) alone.

So a killed training resumes from its newest state, bitwise equal on a CPU. The state consists of the
counters, the weights, their averages and the optimiser's moments. The averages are an EMA with a warm-up, and
power-function averages with a relative width σ_rel (EDM2, Karras et al. 2024, 2312.02696, sec. 3).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diffusion.code_digest import CodeSince
from diffusion.model.power_ema import newest_weight
from diffusion.model.precision import memory_layout
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import build_process
from diffusion.process.time_samplers import TimeSampler
from diffusion.system.memory import keep_freed_memory
from diffusion.train.checkpoint.state_files import (
    Means,
    SavedState,
    StateValues,
    meta_tensors,
    without_prefix,
)
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.sharding import Shards, shard_network
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.loss_bands import band_sums
from diffusion.train.lr_schedule import learning_rate
from diffusion.train.objective import Batch
from diffusion.train.optimizers import make_optimizer
from diffusion.train.plan import TrainPlan, build_objective
from diffusion.train.pretrained import init_network
from diffusion.train.step_memory import translate_oom

IGNORES_FOUND_INF = ("mps",)  # devices whose fused optimiser ignores found_inf (pytorch#186360)
STEP_KEY = "step"  # an optimiser's name for its count of steps, among a parameter's moments


@dataclass
class TrainState:
    """A training after `step` steps: the network and its EMA, which becomes the result.

    `ema_profiles` are power-function averages with the plan's `sigma_rels`. If `shards` is set, all of them
    and the optimiser's moments are this rank's shards.

    `skipped` counts non-finite steps, `bad_in_a_row` the latest ones in a row. `window` has the sums and the
    count of the means since the last log entry. `history` is the curve, `code` the code that made the steps.
    """

    plan: TrainPlan
    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    time_sampler: TimeSampler
    ema_profiles: nn.ModuleList = field(default_factory=nn.ModuleList)
    shards: Shards | None = None
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    window: Means = field(default_factory=dict)
    history: list[Means] = field(default_factory=list)
    code: list[CodeSince] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, EMA, moments, the time sampler's statistics and EMA profiles, by `part.name`.

        They are the tensors themselves. A moment is `optimizer.number.moment`, with its parameter's number.
        """
        state = self.optimizer.state_dict()["state"]
        moments = {f"{number}.{name}": value for number, one in state.items() for name, value in one.items()}
        parts: dict[str, Mapping[str, Tensor]] = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": moments,
            "timesteps": self.time_sampler.state_dict(),  # the name in stored states
            "ema_profiles": self.ema_profiles.state_dict(),
        }
        return {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}

    def values(self) -> StateValues:
        """Return the counters, the curve so far and the code."""
        return StateValues(**{name: getattr(self, name) for name in StateValues.model_fields})

    def saved(self) -> SavedState:
        """Return the state to be saved; with shards a collective, whose full tensors are on rank 0."""
        tensors = self.tensors()
        if self.shards:
            full = {name: self.shards.gather(tensors[name], size) for name, size in self._sharded().items()}
            tensors |= full
        return SavedState(tensors, self.values())

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Restore the saved state exactly; further steps are recorded as made by the current code.

        EMA profiles that this training does not track are ignored. Each tensor is requested once, in the
        saved order, and released before the next one. ValueError, on all ranks, for other names or shapes.
        """
        tensors = saved.tensors
        if not self.plan.train.sigma_rels:
            tensors = without_prefix(tensors, "ema_profiles.")
        self._allocate_moments(tensors)
        held, sharded = self.tensors(), self._sharded()
        sizes = {name: list(sharded.get(name, tensor.shape)) for name, tensor in held.items()}
        found = {name: list(tensor.shape) for name, tensor in meta_tensors(tensors).items()}
        for name in sorted(sizes.keys() | found.keys()):
            if found.get(name) != sizes.get(name):
                raise ValueError(f"{name} has shape {found.get(name)} instead of {sizes.get(name)}")
        for name, tensor in tensors.items():
            held[name].copy_(self.shards.rows(tensor) if self.shards and name in sharded else tensor)
        now = self.code[-1]
        for name in StateValues.model_fields:
            setattr(self, name, copy.deepcopy(getattr(saved.values, name)))
        if (now.digest, now.torch) not in [(last.digest, last.torch) for last in self.code[-1:]]:
            self.code.append(now.model_copy(update={"step": self.step}))

    def _allocate_moments(self, names: Mapping[str, Tensor]) -> None:
        """Allocate the named moments in their parameters' memory layout, as the fused optimiser needs them.

        All are allocated before a tensor is loaded, so that freed buffers leave no holes.
        """
        self.optimizer.state.clear()
        weights = self._optimized_weights()
        for name in names:
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                weight = weights[int(number)]
                count = torch.zeros((), device=weight.device)
                value = count if moment == STEP_KEY else torch.empty_like(weight)
                self.optimizer.state[weight][moment] = value

    def _optimized_weights(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def _sharded(self) -> dict[str, torch.Size]:
        """Return the full shape of each sharded tensor, by name; empty without shards."""
        if self.shards is None:
            return {}
        full = dict(self.shards.meta.named_parameters())
        parts = ["network", "ema", *(f"ema_profiles.{number}" for number in range(len(self.ema_profiles)))]
        sizes = {f"{part}.{name}": weight.shape for part in parts for name, weight in full.items()}
        by_weight = dict(zip(self.network.parameters(), full.values(), strict=True))
        for number, weight in enumerate(self._optimized_weights()):
            for moment in self.optimizer.state.get(weight, {}):
                if moment != STEP_KEY:
                    sizes[f"optimizer.{number}.{moment}"] = by_weight[weight].shape
        return sizes

    def full(self, module: nn.Module) -> nn.Module:
        """Return one of the networks in full on rank 0's device; a collective with shards."""
        return self.shards.gather_network(module) if self.shards else module

    def change_of_code(self) -> tuple[CodeSince, CodeSince] | None:
        """Return the previous and the current code if the code changed at this step, else None."""
        if len(self.code) < 2 or self.code[-1].step != self.step:
            return None
        return self.code[-2], self.code[-1]

    def record(self, means: Means) -> None:
        """Add a finite step's means to the window; count a non-finite step."""
        if all(map(math.isfinite, means.values())):
            self.bad_in_a_row = 0
            for name, value in {**means, "count": 1.0}.items():
                self.window[name] = self.window.get(name, 0.0) + value
        else:
            self.skipped += 1
            self.bad_in_a_row += 1

    def pop_means(self) -> Means:
        """Return the window's means and empty it; no means if no step in it was finite."""
        sums, self.window = self.window, {}
        count = sums.pop("count", 0.0)
        return {name: total / count for name, total in sums.items()}


def new_state(plan: TrainPlan, device: torch.device, group: ProcessGroup | None = None) -> TrainState:
    """Return step 0: random weights from the seed, or the plan's pretrained ones.

    With several ranks in `group` the state is sharded if the plan requests it. Then these weights alone,
    before anything else is allocated, are ever complete in a process.
    """
    train, objective = plan.train, build_objective(plan)
    with translate_oom(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # torch's initialisers use the global generator
            torch.manual_seed(counter_generator(objective.weights_purpose, train.seed).initial_seed())
            network = objective.network(plan.network)
        groups = init_network(network, plan.init_from, plan)
        keep_freed_memory(device.type)
        network.train()
        shards = None
        if group and train.shard and group.world_size > 1:
            shards, network, groups = shard_network(network, groups, group)
        else:
            network.to(device)
            network.to(memory_format=memory_layout(plan.precision, device))  # type: ignore[call-overload]
        optimizer = make_optimizer(train, network, groups)
        time_sampler = objective.time_sampler(build_process(plan.process))
        profiles = nn.ModuleList(ema_copy(network) for _ in train.sigma_rels)
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
    # Early averages forget the initialisation.
    decay = min(train.ema_decay, (1 + state.step) / (10 + state.step))
    ema_update(state.ema, state.network, decay, finite)
    with torch.no_grad():
        # The first step overwrites a profile. A non-finite step counts the previous weights once more.
        for profile, sigma_rel in zip(state.ema_profiles, train.sigma_rels, strict=True):
            part = newest_weight(sigma_rel, state.step + 1)
            torch._foreach_lerp_(list(profile.parameters()), list(state.network.parameters()), part)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means


def ema_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode that takes no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, decay: float, finite: Tensor) -> None:
    """Set ema to decay·ema + (1 − decay)·network in place if `finite`, without a synchronisation."""
    averages: list[Tensor] = list(ema.parameters())
    weights: list[Tensor] = list(network.parameters())
    part = (1 - decay) * finite.to(averages[0].dtype)
    if part.device.type == "cpu":
        torch._foreach_lerp_(averages, weights, [part] * len(averages))
    else:
        lerp_tensors(averages, weights, part)


def lerp_tensors(averages: list[Tensor], weights: list[Tensor], part: Tensor) -> None:
    """Add part·(weights − averages) to `averages` in place, in few kernels; `part` is on their device."""
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, part)
    torch._foreach_add_(averages, list(differences))
