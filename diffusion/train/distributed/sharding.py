"""A training whose weights, averages and moments are sharded, one shard per rank (FSDP: 2304.11277).

Every tensor is split along its first dimension. torch's `fully_shard` gathers each of the network's
`shard_units()` just before it computes, forward and backward, and sums its gradients into the shards.
Everything else that happens to the weights is elementwise, so that each rank applies it to its shard.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.train.checkpoint.resumable import STEP_KEY
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.checkpoint.tensor_stream import LazyTensors, meta_tensors
from diffusion.train.distributed.process_group import ProcessGroup, translate_dist_errors
from diffusion.train.train_config import OptimisationConfig

if TYPE_CHECKING:
    from diffusion.train.train_step import TrainState

CPU = torch.device("cpu")


def is_sharded(train: OptimisationConfig, group: ProcessGroup) -> bool:
    """Whether the training is sharded: on request, and with several ranks."""
    return train.shard and group.world_size > 1


def shard_units(network: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered as a unit: those that the network lists, and last the network."""
    return [*getattr(network, "shard_units", list)(), network]


def shard_network(
    network: nn.Module, groups: Sequence[dict[str, Any]], group: ProcessGroup
) -> tuple["Shards", nn.Module, list[dict[str, Any]]]:
    """Shard the network in place on the group's device.

    Returns its shards, a module whose parameters are this rank's shards, and the optimiser's groups of them.
    The network itself remains the module that computes.
    """
    from torch.distributed.device_mesh import init_device_mesh  # heavy, and unused by a single process
    from torch.distributed.fsdp import fully_shard

    meta, parameters = _meta_copy(network), list(network.parameters())
    mesh = init_device_mesh(group.device.type, (group.world_size,))
    for unit in shard_units(network):
        sharded = fully_shard(unit, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # each loss is a share of the batch's mean already
        sharded.set_force_sum_reduction_for_comms(True)
    local = _with_parameters(meta, map(_to_local, network.parameters()))
    replacements = dict(zip(parameters, local.parameters(), strict=True))
    return Shards(network, local, meta, group), local, _regroup(groups, replacements)


class Shards:
    """The shards of a training state: gradient sums, and gathering of the full state on rank 0.

    `computing` is the network that computes, and `meta` the unsharded network on the meta device. The
    gathering methods are collectives: they return full modules on rank 0, and the shards on other ranks.
    """

    def __init__(self, computing: nn.Module, local: nn.Module, meta: nn.Module, group: ProcessGroup) -> None:
        self.computing, self.meta, self._group = computing, meta, group
        self._pairs = list(zip(local.parameters(), computing.parameters(), strict=True))

    def take_gradients(self) -> None:
        """Move the gradients, which the backward passes have summed, to the state's shards."""
        for shard, computing in self._pairs:
            shard.grad = None if computing.grad is None else _to_local(computing.grad)
            computing.grad = None

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the Euclidean norm over the gradients of all shards."""
        squares = torch.nn.utils.get_total_norm(list(gradients)).square().to(self._group.device)
        self._group.all_reduce([squares])
        return squares.sqrt()

    def gather(self, shards: nn.Module) -> nn.Module:
        """Return a full network on rank 0's device."""
        return self._gather_module(shards, self._group.device)

    def gather_state(self, state: "TrainState") -> "TrainState":
        """Return a full copy of the state in rank 0's host memory."""
        network, ema = self._gather_module(state.network, CPU), self._gather_module(state.ema, CPU)
        profiles = nn.ModuleList(self._gather_module(profile, CPU) for profile in state.ema_profiles)
        sizes = dict(zip(state.network.parameters(), self.meta.parameters(), strict=True))
        optimizer = _move_optimizer(
            state.optimizer,
            dict(zip(state.network.parameters(), network.parameters(), strict=True)),
            lambda parameter, moment: self._gather(moment, sizes[parameter].shape),
        )
        return replace(
            state,
            network=network,
            ema=ema,
            ema_profiles=profiles,
            optimizer=optimizer,
            time_sampler=copy.deepcopy(state.time_sampler),
            shards=None,
        )

    def unshard(self, state: "TrainState") -> None:
        """Replace the state's shards by the full tensors, on rank 0."""
        full = self.gather_state(state)
        for part in ("network", "ema", "ema_profiles", "optimizer", "shards"):
            setattr(state, part, getattr(full, part))

    def shard_state(self, state: "TrainState", saved: SavedState) -> SavedState:
        """Return this rank's rows of a saved state, loaded on request; ValueError on all ranks if unfit."""
        sizes = {name: parameter.shape for name, parameter in self.meta.named_parameters()}
        parts = ["network", "ema", *(f"ema_profiles.{number}" for number in range(len(state.ema_profiles)))]
        sharded = {f"{part}.{name}": size for part in parts for name, size in sizes.items()}
        by_weight = dict(zip(state.network.parameters(), sizes.values(), strict=True))
        learned = [by_weight[weight] for one in state.optimizer.param_groups for weight in one["params"]]
        moments = {f"optimizer.{number}": size for number, size in enumerate(learned)}
        for name, tensor in meta_tensors(saved.tensors).items():
            parameter, _, moment = name.rpartition(".")
            if parameter in moments and moment != STEP_KEY:
                sharded[name] = moments[parameter]
            if name in sharded and tensor.shape != sharded[name]:
                raise ValueError(f"{name} has shape {list(tensor.shape)} instead of {list(sharded[name])}")

        def local(name: str, tensor: Tensor) -> Tensor:
            return shard_rows(tensor, self._group) if name in sharded else tensor

        meta = {name: local(name, tensor) for name, tensor in meta_tensors(saved.tensors).items()}
        return saved._replace(tensors=LazyTensors(meta, lambda name: local(name, saved.tensors[name])))

    def _gather_module(self, shards: nn.Module, device: torch.device) -> nn.Module:
        pairs = zip(shards.parameters(), self.meta.parameters(), strict=True)
        full = [self._gather(shard, whole.shape).to(device) for shard, whole in pairs]
        return _with_parameters(_meta_copy(shards), full) if self._group.is_rank_zero else shards

    def _gather(self, shard: Tensor, size: torch.Size) -> Tensor:
        """Return the full tensor in rank 0's host memory; the shard on other ranks."""
        if not size or shard.ndim == 0:
            return shard.detach().to(CPU, copy=True)
        sent = shard.new_zeros(-(-size[0] // self._group.world_size), *size[1:])
        sent[: len(shard)] = shard.detach()
        is_rank_zero = self._group.is_rank_zero
        parts = [torch.empty_like(sent) for _ in range(self._group.world_size)] if is_rank_zero else None
        with translate_dist_errors():
            dist.gather(sent, parts)
        return torch.cat([part.cpu() for part in parts])[: size[0]] if parts else shard.detach()


def shard_rows(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Return a view of this rank's rows, none if the tensor has fewer rows than there are ranks."""
    parts = tensor.detach().chunk(group.world_size)
    return parts[group.rank] if group.rank < len(parts) else tensor.detach()[:0]


def _meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy with parameters on the meta device."""
    shapes = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, shapes)


def _with_parameters(meta: nn.Module, tensors: Iterable[Tensor]) -> nn.Module:
    """Return a copy with these tensors, in order, as its parameters."""
    filled, coming = copy.deepcopy(meta), iter(tensors)
    for module in filled.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(next(coming), parameter.requires_grad))
    return filled


def _to_local(parameter: Tensor) -> Tensor:
    """Return a view of this rank's part of a sharded parameter or gradient."""
    with torch.no_grad():
        return parameter.to_local()  # type: ignore[attr-defined, no-any-return]


def _regroup(
    groups: Sequence[dict[str, Any]], replacements: dict[nn.Parameter, nn.Parameter]
) -> list[dict[str, Any]]:
    """Return the optimiser's groups with their parameters replaced."""
    return [
        {**group, "params": [replacements[parameter] for parameter in group["params"]]} for group in groups
    ]


def _move_optimizer(
    optimizer: torch.optim.AdamW,
    replacements: dict[nn.Parameter, nn.Parameter],
    convert: Callable[[nn.Parameter, Tensor], Tensor],
) -> torch.optim.AdamW:
    """Return the same optimiser of replaced parameters, with each moment converted."""
    moved = torch.optim.AdamW(_regroup(optimizer.param_groups, replacements), fused=True)
    for parameter, replacement in replacements.items():
        if values := optimizer.state.get(parameter):
            moved.state[replacement] = {name: convert(parameter, value) for name, value in values.items()}
    return moved
