"""The ranks that train together, their collectives, and work of rank 0 alone."""

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch._utils import _take_tensors

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError, first_line
from diffusion.train.checkpoint.state_files import LazyTensors, SavedState, meta_tensors

if TYPE_CHECKING:
    from diffusion.system.signals import StopRequest

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # ends a training that hangs
MAX_WAIT = timedelta(days=7)  # for work of rank 0 alone
BUCKET = 64 * 2**20  # bytes that are summed at a time
# Parts of the messages for a broken connection. gloo has no error type for it; NCCL's has further causes.
BROKEN = re.compile(
    r"closed by (remote )?peer|reset by peer|Corrupted pipe|Connection refused|Connection timed out|"
    r"No route to host|Read error \[|Socket closed \[|Timed out waiting|timeout caused pair closure|"
    r"collective operation timeout|remote process exited"
)


class RankFailed(TemporaryError):
    """Another rank has ended, so that this one cannot continue."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among `world_size`; a single rank communicates with nothing."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    # Set when this process ends the training by itself.
    over: threading.Event = field(default_factory=threading.Event)
    store: Store | None = None  # the store of the rendezvous

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process saves, logs and previews."""
        return self.rank == 0

    @property
    def loss_blocks(self) -> bool:
        """Whether queued work hangs when another rank has failed: a GPU that waits in an NCCL collective."""
        return self.device.type == "cuda"

    def share(self, count: int, prefix: str = "") -> slice:
        """Return this rank's rows of `count`; shares differ by at most one row.

        UsageError for an empty share, with `prefix` before the section `train`.
        """
        if count < self.world_size:
            raise UsageError(
                f"{prefix}train.batch_size {count} is less than the {self.world_size} processes: raise it, "
                f"or lower {prefix}train.devices"
            )
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, with the same bits on all of them."""
        if self.world_size > 1:
            with translate_dist_errors():
                for bucket in _take_tensors(tensors, BUCKET):  # type: ignore[no-untyped-call]
                    flat = torch.cat([tensor.flatten() for tensor in bucket])
                    dist.all_reduce(flat)
                    parts = flat.split_with_sizes([tensor.numel() for tensor in bucket])
                    for tensor, part in zip(bucket, parts, strict=True):
                        tensor.copy_(part.view_as(tensor))

    def reduce_number(self, number: int, operation: dist.ReduceOp.RedOpType) -> int:
        """Return the ranks' numbers combined by `operation`."""
        combined = torch.tensor(number)
        if self.world_size > 1:
            with translate_dist_errors():
                dist.all_reduce(combined, operation)
        return int(combined)

    def agree_on_stop(self, stop: "StopRequest") -> None:
        """Raise Interrupted on all ranks at the same step if one of them has received a signal."""
        number = self.reduce_number(stop.signal or 0, dist.ReduceOp.MAX)
        if number:  # a signal that arrived meanwhile is agreed on after the next step
            stop.signal = number
            stop.raise_if_set()

    def broadcast_state(self, identity: str, saved: SavedState | None) -> SavedState | None:
        """Return rank 0's saved state, if it has one; DiffctlError on a rank with another `identity`.

        All ranks must request the same tensors in the same order. Each tensor is broadcast on request and
        arrives on the CPU.
        """
        if self.world_size == 1:
            return saved
        with translate_dist_errors():
            tensors, counters = (meta_tensors(saved.tensors), saved.values) if saved else ({}, None)
            sent: list[Any] = [(identity, dict(tensors), counters)]
            dist.broadcast_object_list(sent, 0)
            first, meta, values = sent[0]
            if first != identity:
                raise DiffctlError(
                    f"process {self.rank} on {socket.gethostname()} would train something else than the "
                    "first one: params.yaml, data and kind of device must be the same everywhere"
                )
        if values is None:
            return None

        def load(name: str) -> Tensor:
            if saved and self.is_rank_zero:
                tensor = saved.tensors[name].detach().cpu().contiguous()
            else:
                # contiguous as the sent one, whatever the layout of the weights: gloo copies bytes
                tensor = torch.empty(meta[name].shape, dtype=meta[name].dtype)
            with translate_dist_errors():
                dist.broadcast(tensor, 0)
            return tensor

        return SavedState(LazyTensors(meta, load), values)


@contextmanager
def translate_dist_errors() -> Iterator[None]:
    """Raise RankFailed for torch's errors about a broken connection; other errors pass unchanged."""
    try:
        yield
    except RuntimeError as error:
        has_type = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if not has_type and not BROKEN.search(str(error)):
            raise
        # The first sentence, without the line in gloo's source and its advice.
        cause = re.sub(r"^\[\S+:\d+\] ", "", first_line(error)).partition(". ")[0]
        raise RankFailed(
            f"another process of this training has ended or is out of reach ({cause}): the same "
            "command resumes from the saved state"
        ) from error


@contextmanager
def join_group(group: ProcessGroup, store: Store) -> Iterator[ProcessGroup]:
    """Join the ranks that meet at `store`: NCCL between GPUs, gloo between hosts.

    After a RankFailed that blocks the GPU the group is not destroyed, since that would wait for the GPU.
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


@contextmanager
def rank_zero_first(group: ProcessGroup, what: str) -> Iterator[None]:
    """Run the block on rank 0; the other ranks leave it when rank 0 does.

    All ranks must enter it at the same place with the same `what`, once in a training. The others wait at the
    store, since a collective has a timeout, and scoring 50,000 images may take longer. RankFailed if rank 0
    has ended.
    """
    store = group.store if group.world_size > 1 else None
    try:
        yield
    finally:
        if store is not None and group.is_rank_zero:
            with translate_dist_errors():
                store.set(f"done/{what}", "")
    if store is not None and not group.is_rank_zero:
        with translate_dist_errors():
            store.wait([f"done/{what}"], MAX_WAIT)
