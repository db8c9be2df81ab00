"""The state of a training: all that a step changes, and how it is saved and restored.

Step k's batch, timesteps and noise come from (seed, k) alone. So a killed training resumes from its newest
state, bitwise equal on a CPU. The state consists of the counters, the weights, their averages and the
optimiser's moments. The averages are an EMA with a warm-up, and power-function averages with a relative width
σ_rel (EDM2, Karras et al. 2024, 2312.02696, sec. 3).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diffusion.code_digest import CodeSince
from diffusion.process.objective import Objective
from diffusion.process.time_samplers import TimeSampler
from diffusion.train.checkpoint.state_files import (
    Means,
    SavedState,
    StateValues,
    meta_tensors,
    without_prefix,
)
from diffusion.train.distributed.sharding import Shards
from diffusion.train.plan import TrainPlan
from diffusion.train.train_config import BAND_EDGES, BAND_NAMES

SUM, COUNT = ".sum", ".count"  # suffixes of a band's means


@dataclass
class TrainState:
    """A training after `step` steps: the network and its EMA, which becomes the result.

    `ema_objective` has the EMA of the objective's parameters if these are averaged, else it is the objective.
    `ema_profiles` are power-function averages with the plan's `sigma_rels`. If `shards` is set, all of them
    and the optimiser's moments are this rank's shards.

    `skipped` counts non-finite steps, `bad_in_a_row` the latest ones in a row. `window` has the sums and the
    count of the means since the last log entry. `history` is the curve, `code` the code that made the steps.
    """

    plan: TrainPlan
    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    time_sampler: TimeSampler
    objective: Objective
    ema_objective: Objective
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
            "objective": self.objective.state_dict(),
        }
        if self.objective.is_averaged:
            parts["ema_objective"] = self.ema_objective.state_dict()
        return {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}

    def values(self) -> StateValues:
        """Return the counters, the curve so far and the code."""
        return StateValues(**{name: getattr(self, name) for name in StateValues.model_fields})

    def saved(self) -> SavedState:
        """Return the state to be saved. With shards this is a collective; rank 0 gets the full tensors."""
        tensors = self.tensors()
        if self.shards:
            full = {name: self.shards.gather(tensors[name], size) for name, size in self._sharded().items()}
            tensors |= full
        return SavedState(tensors, self.values())

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Restore the saved state exactly; further steps are recorded as made by the current code.

        EMA profiles that this training does not track are ignored. Each tensor is requested once, in the
        saved order, and released before the next one. ValueError, on all ranks, for other names or shapes,
        or from the optimiser's `check_moments`, if it has that.
        """
        tensors = saved.tensors
        if not self.plan.train.sigma_rels:
            tensors = without_prefix(tensors, "ema_profiles.")
        self._allocate_moments(tensors)
        getattr(self.optimizer, "check_moments", lambda: None)()
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

    def _allocate_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate the stored moments; those of a weight's shape in its memory layout, as fused steps need.

        All are allocated before a tensor is loaded, so that freed buffers leave no holes.
        """
        self.optimizer.state.clear()
        weights, full = self._optimized_weights(), self._full_shapes()
        for name, stored in meta_tensors(tensors).items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".", 2)
                weight = weights[int(number)]
                is_like_weight = stored.shape == full.get(weight, weight.shape)
                shape = weight if is_like_weight else stored
                value = torch.empty_like(shape, dtype=stored.dtype, device=weight.device)
                self.optimizer.state[weight][moment] = value

    def _optimized_weights(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def _full_shapes(self) -> dict[nn.Parameter, torch.Size]:
        """Return the full shape of each sharded weight; empty without shards."""
        if self.shards is None:
            return {}
        pairs = zip(self.network.parameters(), self.shards.meta.parameters(), strict=True)
        return {weight: whole.shape for weight, whole in pairs}

    def _sharded(self) -> dict[str, torch.Size]:
        """Return the full shape of each sharded tensor, by name; empty without shards.

        A moment is sharded if it has the shape of its weight's shard.
        """
        full = self._full_shapes()
        names = {weight: name for name, weight in self.network.named_parameters()}
        parts = ["network", "ema", *(f"ema_profiles.{number}" for number in range(len(self.ema_profiles)))]
        sizes = {f"{part}.{names[weight]}": shape for part in parts for weight, shape in full.items()}
        for number, weight in enumerate(self._optimized_weights()):
            for moment, value in self.optimizer.state.get(weight, {}).items():
                if weight in full and value.shape == weight.shape:
                    sizes[f"optimizer.{number}.{moment}"] = full[weight]
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


def band_sums(losses: Tensor, log_snr: Tensor) -> dict[str, Tensor]:
    """Return sum and count of per-image losses (B,) by band of the log-SNR 2λ; `log_snr` (B,) is λ."""
    log_snr = log_snr.to(losses.device)
    band = torch.stack([2 * log_snr <= edge for edge in BAND_EDGES]).sum(0)
    inside = (band[:, None] == torch.arange(len(BAND_NAMES), device=losses.device)).to(losses.dtype)
    sums = {f"{name}{SUM}": value for name, value in zip(BAND_NAMES, losses @ inside, strict=True)}
    counts = zip(BAND_NAMES, inside.sum(0), strict=True)
    return sums | {f"{name}{COUNT}": value for name, value in counts}


def with_band_means(totals: dict[str, float]) -> dict[str, float]:
    """Replace sums and counts by each band's mean; omit a band without images."""
    values = {name: value for name, value in totals.items() if not name.endswith((SUM, COUNT))}
    for name in BAND_NAMES:
        if totals.get(f"{name}{COUNT}"):
            values[name] = totals[f"{name}{SUM}"] / totals[f"{name}{COUNT}"]
    return values
