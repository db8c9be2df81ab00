"""A training whose weights, averages and moments lie in shards, one a process (FSDP: 2304.11277).

Every tensor is cut along its first dimension. torch's `fully_shard` puts a stage of the network together just
before it computes, forward and back, and sums its gradients into the shards. All that is done to weights
between two passes goes number by number, so each process does to its shard what one would do to all of it.
"""

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.model.blocks import Stage
from diffusion.train.checkpoint.lazy_tensors import LazyTensors, meta_tensors
from diffusion.train.checkpoint.resumable import STEP_KEY
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.distributed.process_group import ProcessGroup, translate_dist_errors
from diffusion.train.train_config import OptimisationConfig

if TYPE_CHECKING:
    from diffusion.train.loop import TrainState

CPU = torch.device("cpu")

Moment = Callable[[nn.Parameter, Tensor], Tensor]
"""What becomes of a parameter's moment."""


def is_sharded(train: OptimisationConfig, group: ProcessGroup) -> bool:
    """Whether the training lies in shards: where that is asked for, and there are several processes."""
    return train.shard and group.world_size > 1


def shard_units(network: nn.Module) -> list[nn.Module]:
    """What is put together at a time: the network's stages, and last itself with all that is in none."""
    return [*(module for module in network.modules() if isinstance(module, Stage)), network]


def shard_network(
    network: nn.Module, groups: Sequence[dict[str, Any]], group: ProcessGroup
) -> tuple["Shards", nn.Module, list[dict[str, Any]]]:
    """The network's shards, a module whose weights are this process's, and the optimiser's groups of those.

    They lie on the group's device. The network itself goes on to compute, and is put together for that.
    """
    bare, whole = _meta_copy(network), list(network.parameters())
    _shard(network, group)
    own = _with_parameters(bare, map(_local, network.parameters()))
    places = dict(zip(whole, own.parameters(), strict=True))
    return Shards(network, own, bare, group), own, _placed(groups, places)


class Shards:
    """What sums the gradients of a state in shards, and gives the whole of it to who looks or saves.

    It sums as OverlappedSums does where every process has all weights. What all processes must call gives the
    whole to the first one; the others, which send their shards for it, get back their own. `computing` is the
    network that computes, `own` has its shards as weights, and `bare` is what it is whole, without numbers.
    """

    def __init__(self, computing: nn.Module, own: nn.Module, bare: nn.Module, group: ProcessGroup) -> None:
        self.computing, self.bare, self._group = computing, bare, group
        self._pairs = list(zip(own.parameters(), computing.parameters(), strict=True))

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

    def networks(self, state: "TrainState") -> tuple[nn.Module, nn.Module]:
        """The weights and their average, whole, on the first process's device; all processes call it."""
        return self._whole(state.network, self._group.device), self.ema(state)

    def ema(self, state: "TrainState") -> nn.Module:
        """The average alone, likewise."""
        return self._whole(state.ema, self._group.device)

    def whole(self, state: "TrainState") -> "TrainState":
        """A copy of the state as one process has it, in the host's memory; all processes call it."""
        network, ema = self._whole(state.network, CPU), self._whole(state.ema, CPU)
        averages = nn.ModuleList(self._whole(average, CPU) for average in state.averages)
        sizes = dict(zip(state.network.parameters(), self.bare.parameters(), strict=True))
        optimizer = _moved(
            state.optimizer,
            dict(zip(state.network.parameters(), network.parameters(), strict=True)),
            lambda parameter, moment: self._gathered(moment, sizes[parameter].shape),
        )
        return replace(
            state,
            network=network,
            ema=ema,
            averages=averages,
            optimizer=optimizer,
            timesteps=copy.deepcopy(state.timesteps),
            shards=None,
            is_copy=True,
        )

    def join(self, state: "TrainState") -> None:
        """Let the state be whole again on the first process; all processes call it."""
        whole = self.whole(state)
        for part in ("network", "ema", "averages", "optimizer", "shards"):
            setattr(state, part, getattr(whole, part))

    def own(self, state: "TrainState", saved: SavedState) -> SavedState:
        """The saved state, of whose weights and moments this process's rows come, each when it is asked for.

        ValueError, on all processes alike, where one is of another size than this state's.
        """
        sizes = {name: parameter.shape for name, parameter in self.bare.named_parameters()}
        places = ["network", "ema", *(f"averages.{number}" for number in range(len(state.averages)))]
        shard_network = {f"{place}.{name}": size for place in places for name, size in sizes.items()}
        order = dict(zip(state.network.parameters(), sizes.values(), strict=True))
        learned = [order[weight] for one in state.optimizer.param_groups for weight in one["params"]]
        moments = {f"optimizer.{number}": size for number, size in enumerate(learned)}
        for name, outline in meta_tensors(saved.tensors).items():
            parameter, _, moment = name.rpartition(".")
            if parameter in moments and moment != STEP_KEY:
                shard_network[name] = moments[parameter]
            if name in shard_network and outline.shape != shard_network[name]:
                raise ValueError(f"{name} of {list(outline.shape)} is none of {list(shard_network[name])}")
        return saved._replace(tensors=_Rows(saved.tensors, shard_network, self._group))

    def _whole(self, shards: nn.Module, device: torch.device) -> nn.Module:
        pairs = zip(shards.parameters(), self.bare.parameters(), strict=True)
        whole = [self._gathered(shard, full.shape).to(device) for shard, full in pairs]
        return _with_parameters(_meta_copy(shards), whole) if self._group.is_rank_zero else shards

    def _gathered(self, shard: Tensor, size: torch.Size) -> Tensor:
        """The whole tensor in the first process's memory; on the others the shard."""
        if not size or shard.ndim == 0:
            return shard.detach().to(CPU, copy=True)
        sent = shard.new_zeros(-(-size[0] // self._group.world_size), *size[1:])
        sent[: len(shard)] = shard.detach()
        is_rank_zero = self._group.is_rank_zero
        parts = [torch.empty_like(sent) for _ in range(self._group.world_size)] if is_rank_zero else None
        with translate_dist_errors():
            dist.gather(sent, parts)
        return torch.cat([part.cpu() for part in parts])[: size[0]] if parts else shard.detach()


class _Rows(LazyTensors):
    """Tensors of which this process's rows come, where they are named in `shard_network`."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shard_network: Container[str], group: ProcessGroup
    ) -> None:
        self._tensors, self._cut, self._group = tensors, shard_network, group
        super().__init__({name: self._own(name, outline) for name, outline in meta_tensors(tensors).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._own(name, self._tensors[name])

    def _own(self, name: str, whole: Tensor) -> Tensor:
        return shard_rows(whole, self._group) if name in self._cut else whole


def shard_rows(whole: Tensor, group: ProcessGroup) -> Tensor:
    """This process's rows of a tensor, none where it has fewer than there are processes; no copy."""
    parts = whole.detach().chunk(group.world_size)
    return parts[group.rank] if group.rank < len(parts) else whole.detach()[:0]


def _shard(network: nn.Module, group: ProcessGroup) -> None:
    """Let the network be sharded, in place."""
    from torch.distributed.device_mesh import init_device_mesh  # loads what one process never needs
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(group.device.type, (group.world_size,))
    for unit in shard_units(network):
        sharded = fully_shard(unit, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # a loss is its share of the whole batch's mean already
        sharded.set_force_sum_reduction_for_comms(True)


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no numbers."""
    shapes = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, shapes)


def _with_parameters(bare: nn.Module, tensors: Iterable[Tensor]) -> nn.Module:
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


def _placed(
    groups: Sequence[dict[str, Any]], places: dict[nn.Parameter, nn.Parameter]
) -> list[dict[str, Any]]:
    """The same groups of the parameters in `places`, which stand for their own."""
    return [{**group, "params": [places[parameter] for parameter in group["params"]]} for group in groups]


def _moved(
    optimizer: torch.optim.AdamW, places: dict[nn.Parameter, nn.Parameter], moment: Moment
) -> torch.optim.AdamW:
    """The same optimiser of the parameters in `places`, which stand for its own."""
    moved = torch.optim.AdamW(_placed(optimizer.param_groups, places), fused=True)
    for parameter, place in places.items():
        if values := optimizer.state.get(parameter):
            moved.state[place] = {name: moment(parameter, value) for name, value in values.items()}
    return moved
