"""A training whose weights, averages and moments lie in shards, one a process (FSDP: 2304.11277).

Every tensor is cut along its first dimension. torch's `fully_shard` puts a stage of the network together just
before it computes, forward and back, and sums its gradients into the shards. All that is done to weights
between two passes goes number by number, so each process does to its shard what one would do to all of it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.model.blocks import Stage
from diffusion.train.config import OptimisationConfig
from diffusion.train.distributed import ProcessGroup, lost_rank_told

if TYPE_CHECKING:
    from diffusion.train.loop import TrainState

CPU = torch.device("cpu")

Moment = Callable[[nn.Parameter, Tensor], Tensor]
"""What becomes of a parameter's moment."""


def is_sharded(train: OptimisationConfig, group: ProcessGroup) -> bool:
    """Whether the training lies in shards: where that is asked for, and there are several processes."""
    return train.shard and group.world_size > 1


def birthplace(train: OptimisationConfig, group: ProcessGroup) -> torch.device:
    """Where a state is made and restored: in the host's memory, where it is cut before it goes to GPUs."""
    return CPU if is_sharded(train, group) else group.device


def units(network: nn.Module) -> list[nn.Module]:
    """What is put together at a time: the network's stages, and last itself with all that is in none."""
    return [*(module for module in network.modules() if isinstance(module, Stage)), network]


class Shards:
    """This process's shard of a training's state, and the whole of it for who looks or saves.

    It sums the gradients, as OverlappedSums does where every process has all weights. What all processes must
    call gives the whole to the first one; the others, which send their shards for it, get back their own.
    """

    def __init__(self, state: "TrainState", group: ProcessGroup) -> None:
        self._state, self._group = state, group
        self._network, self._ema = _bare(state.network), _bare(state.ema)
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []

    def cut(self) -> None:
        """Leave this process's shard of the state in it, on the group's device.

        The module that was the state's network goes on to compute, and the state's has its shards.
        """
        state = self._state
        before = list(state.network.parameters())
        computing = self._sharded(state.network)
        state.network = _filled(self._network, map(_local, computing))
        state.ema = _filled(self._ema, map(self._cut, state.ema.parameters()))
        averages = [map(self._cut, average.parameters()) for average in state.averages]
        state.averages = nn.ModuleList(_filled(self._ema, average) for average in averages)
        shards = dict(zip(before, state.network.parameters(), strict=True))
        state.optimizer = _moved(state.optimizer, shards, lambda _, moment: self._cut(moment))
        self._pairs = list(zip(shards.values(), computing, strict=True))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Nothing more is done within it than elsewhere: every backward pass sums its own gradients."""
        yield

    def finish(self) -> None:
        """Give the state's weights the gradients that the passes have summed."""
        for shard, computing in self._pairs:
            shard.grad = None if computing.grad is None else _local(computing.grad)
            computing.grad = None

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of the gradients in all shards."""
        squares = torch.nn.utils.get_total_norm(list(gradients)).square().to(self._group.device)
        self._group.all_reduce([squares])
        return squares.sqrt()

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The weights and their average, whole, on the first process's device; all processes call it."""
        state, device = self._state, self._group.device
        return self._whole(state.network, self._network, device), self._whole(state.ema, self._ema, device)

    def whole(self) -> "TrainState":
        """A copy of the state as one process has it, in the host's memory; all processes call it."""
        state = self._state
        network = self._whole(state.network, self._network, CPU)
        ema = self._whole(state.ema, self._ema, CPU)
        averages = nn.ModuleList(self._whole(average, self._ema, CPU) for average in state.averages)
        shards = list(state.network.parameters())
        sizes = dict(zip(shards, self._network.parameters(), strict=True))
        optimizer = _moved(
            state.optimizer,
            dict(zip(shards, network.parameters(), strict=True)),
            lambda parameter, moment: self._gathered(moment, sizes[parameter].shape),
        )
        return replace(
            state,
            network=network,
            ema=ema,
            averages=averages,
            optimizer=optimizer,
            timesteps=copy.deepcopy(state.timesteps),
            is_copy=True,
        )

    def join(self) -> None:
        """Let the state be whole again on the first process; all processes call it."""
        whole = self.whole()
        for part in ("network", "ema", "averages", "optimizer"):
            setattr(self._state, part, getattr(whole, part))

    def _sharded(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters, in the module's order, of the network when it is sharded, in place."""
        from torch.distributed.device_mesh import init_device_mesh  # loads what one process never needs
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self._group.device.type, (self._group.world_size,))
        for unit in units(network):
            sharded = fully_shard(unit, mesh=mesh)
            sharded.set_gradient_divide_factor(1.0)  # a loss is its share of the whole batch's mean already
            sharded.set_force_sum_reduction_for_comms(True)
        return list(network.parameters())

    def _cut(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor, none where it has fewer than there are processes."""
        if whole.ndim == 0:  # a count of steps
            return whole.to(self._group.device)
        parts = whole.detach().chunk(self._group.world_size)
        own = parts[self._group.rank] if self._group.rank < len(parts) else whole.detach()[:0]
        return own.to(self._group.device, copy=True)

    def _whole(self, shards: nn.Module, bare: nn.Module, device: torch.device) -> nn.Module:
        pairs = zip(shards.parameters(), bare.parameters(), strict=True)
        whole = [self._gathered(shard, full.shape).to(device) for shard, full in pairs]
        return _filled(bare, whole) if self._group.is_first else shards

    def _gathered(self, shard: Tensor, size: torch.Size) -> Tensor:
        """The whole tensor in the first process's memory; on the others the shard."""
        if not size or shard.ndim == 0:
            return shard.detach().to(CPU, copy=True)
        sent = shard.new_zeros(-(-size[0] // self._group.world_size), *size[1:])
        sent[: len(shard)] = shard.detach()
        is_first = self._group.is_first
        parts = [torch.empty_like(sent) for _ in range(self._group.world_size)] if is_first else None
        with lost_rank_told():
            dist.gather(sent, parts)
        return torch.cat([part.cpu() for part in parts])[: size[0]] if parts else shard.detach()


def _bare(network: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no numbers."""
    shapes = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, shapes)


def _filled(bare: nn.Module, tensors: Iterable[Tensor]) -> nn.Module:
    """A copy that has these tensors, in order, as its parameters."""
    filled, coming = copy.deepcopy(bare), iter(tensors)
    for module in filled.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(next(coming), parameter.requires_grad))
    return filled


def _local(parameter: Tensor) -> Tensor:
    """What this process holds of a sharded parameter, or of its gradient; no copy."""
    with torch.no_grad():
        return parameter.to_local()  # type: ignore[attr-defined, no-any-return]


def _moved(
    optimizer: torch.optim.AdamW, places: dict[nn.Parameter, nn.Parameter], moment: Moment
) -> torch.optim.AdamW:
    """The same optimiser of the parameters in `places`, which stand for its own."""
    groups = optimizer.param_groups
    moved = torch.optim.AdamW(
        [{**group, "params": [places[parameter] for parameter in group["params"]]} for group in groups],
        fused=True,
    )
    for group in groups:
        for parameter in group["params"]:
            values = optimizer.state.get(parameter, {})
            if values:
                moved.state[places[parameter]] = {
                    name: moment(parameter, value) for name, value in values.items()
                }
    return moved
