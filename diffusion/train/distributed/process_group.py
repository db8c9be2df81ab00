"""The processes that train together: who this one is among them, and the little that they tell each other."""

import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.system.signals import StopRequest
from diffusion.train.buckets import buckets
from diffusion.train.checkpoint.lazy_tensors import LazyTensors, meta_tensors
from diffusion.train.checkpoint.state_files import SavedState

COLLECTIVE_TIMEOUT = timedelta(
    hours=2
)  # of a collective; for what the first one does alone nobody waits in one
# What gloo says of a broken connection in errors that have no type of their own, and NCCL in ones of a type
# that its other errors share.
BROKEN = (
    "closed by peer",
    "closed by remote peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "Connection timed out",
    "No route to host",
    "Read error [",
    "Socket closed [",
    "Timed out waiting",
    "timeout caused pair closure",
    "collective operation timeout",
    "remote process exited",
)


class RankFailed(TemporaryError):
    """Another process of the training has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `world_size` ones that train together; alone, nothing is ever sent."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    over: Event = field(default_factory=Event)  # set where this process ends the training by itself
    lost: Event = field(default_factory=Event)  # set where a loss blocks what this process has on its device
    store: Store | None = None  # where they met

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process saves, logs and previews."""
        return self.rank == 0

    @property
    def loss_blocks(self) -> bool:
        """Whether work that is queued here never ends once another process is lost: a GPU's sums by NCCL."""
        return self.device.type == "cuda"

    def share(self, count: int, prefix: str = "") -> slice:
        """This process's rows of `count`; shares differ by at most one row. UsageError when one gets none.

        `prefix` stands before the section `train` that says both numbers.
        """
        if count < self.world_size:
            raise UsageError(
                f"{prefix}train.batch_size {count} is less than the {self.world_size} processes: raise it, "
                f"or lower {prefix}train.devices"
            )
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits on all of them."""
        if self.world_size > 1:
            with translate_dist_errors():
                for bucket in buckets(tensors, lambda tensor: tensor):
                    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                    dist.all_reduce(flat)
                    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
                    for tensor, part in zip(bucket, parts, strict=True):
                        tensor.copy_(part.view(tensor.shape))

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to replace the tensor by its sum over the processes; what is returned waits for that.

        All processes begin theirs in the same order.
        """
        with translate_dist_errors():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with translate_dist_errors():
                work.wait()

        return wait

    def all_reduce_min(self, number: int) -> int:
        """The least of what the processes say."""
        least = torch.tensor(number)
        if self.world_size > 1:
            with translate_dist_errors():
                dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def gather(self, values: Tensor, share: slice, count: int) -> Tensor:
        """`values` (n, this share's columns) among zeros, (n, count): to be summed over the processes."""
        if self.world_size == 1:
            return values
        whole = values.new_zeros(len(values), count)
        whole[:, share] = values
        return whole

    def agree_on_stop(self, stop: StopRequest) -> None:
        """Interrupted, on all processes at the same step, when a signal has reached one of them."""
        if self.world_size > 1:
            number = torch.tensor(stop.signal or 0)
            with translate_dist_errors():
                dist.all_reduce(number, dist.ReduceOp.MAX)
            if not number:
                return  # a signal that has arrived in the meantime is agreed upon after the next step
            stop.signal = int(number)
        stop.raise_if_set()

    def broadcast_state(self, identity: str, saved: SavedState | None) -> SavedState | None:
        """The first process's saved state, if it has one; DiffctlError on one whose training is another.

        That is said by its identity. All ask for the same tensors in the same order, each of which arrives
        then, on the CPU, also on the first one.
        """
        if self.world_size == 1:
            return saved
        with translate_dist_errors():
            held = meta_tensors(saved.tensors) if saved else {}
            shapes = {name: (outline.shape, outline.dtype) for name, outline in held.items()}
            first, shapes, values = _from_first((identity, shapes, saved.values if saved else None))
            if first != identity:
                raise DiffctlError(
                    f"process {self.rank} on {socket.gethostname()} would train something else than the "
                    "first one: params.yaml, data and kind of device must be the same everywhere"
                )
        if values is None:
            return None
        return SavedState(_Shared(shapes, saved.tensors if saved and self.is_rank_zero else None), values)


class _Shared(LazyTensors):
    """The first process's tensors of these shapes and types: each is sent when all processes ask for it.

    The first one has the `source`. RankFailed when a process is out of reach.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[torch.Size, torch.dtype]],
        source: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__(
            {name: torch.empty(shape, dtype=kind, device="meta") for name, (shape, kind) in shapes.items()}
        )
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        if self._source is None:
            tensor = torch.empty_like(self.outlines[name], device="cpu")
        else:
            tensor = self._source[name].detach().cpu().contiguous()
        with translate_dist_errors():
            dist.broadcast(tensor, 0)
        return tensor


Value = TypeVar("Value")


def _from_first(value: Value) -> Value:
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


@contextmanager
def translate_dist_errors() -> Iterator[None]:
    """Turn torch's errors about a connection that broke into RankFailed; any other stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if not is_broken_connection(error):
            raise
        raise RankFailed(
            f"another process of this training has ended or is out of reach ({_in_short(error)}): the same "
            "command goes on from the saved state"
        ) from error


def is_broken_connection(error: RuntimeError) -> bool:
    """Whether another process or the store is out of reach: no mistake, and no lack of memory."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    return any(mark in str(error) for mark in BROKEN)


def _in_short(error: RuntimeError) -> str:
    """The error's first sentence, without the place in gloo's source and its advice."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". ")[0]


@contextmanager
def join_group(group: ProcessGroup, store: Store) -> Iterator[ProcessGroup]:
    """Join the processes that meet at `store`: NCCL between GPUs, gloo for what the hosts tell each other.

    After a RankFailed that blocks the GPU the group is left as it is, for to destroy it is to wait for it.
    """
    device, world = group.device, group.world_size
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    with translate_dist_errors():
        dist.init_process_group(
            backend, store=store, rank=group.rank, world_size=world, timeout=COLLECTIVE_TIMEOUT, **options
        )
    blocked = False
    try:
        yield group
    except RankFailed:
        blocked = group.loss_blocks
        raise
    finally:
        if not blocked:
            dist.destroy_process_group()
