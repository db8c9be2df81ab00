"""Training with weights, averages and moments in shards, one shard per rank (FSDP: 2304.11277).

Every tensor is split along its first dimension. torch's `fully_shard` gathers each of the network's
`shard_units()` just before it computes, forward and backward, and sums its gradients into the shards.
Everything else that happens to the weights is elementwise, so that each rank applies it to its shard.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.train.distributed.process_group import ProcessGroup, translate_dist_errors


def shard_units(network: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered as a unit: those that the network lists, and last the network."""
    return [*getattr(network, "shard_units", list)(), network]


def shard_network(
    network: nn.Module, groups: Sequence[dict[str, Any]], group: ProcessGroup
) -> tuple["Shards", nn.Module, list[dict[str, Any]]]:
    """Shard the network in place on the group's device.

    Returns its shards, a module with this rank's shards as parameters, and the optimiser's groups of them.
    The network itself remains the module that computes.
    """
    from torch.distributed.device_mesh import init_device_mesh  # heavy, and unused by a single process
    from torch.distributed.fsdp import fully_shard

    meta, parameters = meta_copy(network), list(network.parameters())
    mesh = init_device_mesh(group.device.type, (group.world_size,))
    for unit in shard_units(network):
        sharded = fully_shard(unit, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # each loss is a share of the batch's mean already
        sharded.set_force_sum_reduction_for_comms(True)
    local = with_parameters(meta, map(_to_local, network.parameters()))
    shards = dict(zip(parameters, local.parameters(), strict=True))
    local_groups = [{**one, "params": [shards[parameter] for parameter in one["params"]]} for one in groups]
    return Shards(network, local, meta, group), local, local_groups


class Shards:
    """The shards of a training state: gradient sums, and gathering of full tensors on rank 0.

    `computing` is the network that computes, and `meta` the unsharded network on the meta device. The
    gathering methods are collectives, and return the shards on other ranks.
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

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a view of this rank's rows, none if the tensor has fewer rows than there are ranks."""
        parts = tensor.chunk(self._group.world_size)
        return parts[self._group.rank] if self._group.rank < len(parts) else tensor[:0]

    def gather(self, shard: Tensor, size: torch.Size) -> Tensor:
        """Return the full tensor of this size in rank 0's host memory."""
        sent = shard.new_zeros(-(-size[0] // self._group.world_size), *size[1:])
        sent[: len(shard)] = shard.detach()
        is_rank_zero = self._group.is_rank_zero
        parts = [torch.empty_like(sent) for _ in range(self._group.world_size)] if is_rank_zero else None
        with translate_dist_errors():
            dist.gather(sent, parts)
        return torch.cat([part.cpu() for part in parts])[: size[0]] if parts else shard.detach()

    def gather_network(self, shards: nn.Module) -> nn.Module:
        """Return a full network on rank 0's device."""
        pairs = zip(shards.parameters(), self.meta.parameters(), strict=True)
        full = [self.gather(shard, whole.shape).to(self._group.device) for shard, whole in pairs]
        if not self._group.is_rank_zero:
            return shards
        return with_parameters(meta_copy(shards), full).to(self._group.device)  # buffers too


def meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy with parameters on the meta device."""
    shapes = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, shapes)


def with_parameters(meta: nn.Module, tensors: Iterable[Tensor]) -> nn.Module:
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
