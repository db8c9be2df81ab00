"""The ranks that train together, their collectives, and work of rank 0 alone.

A collective has a timeout, which ends a training that hangs; scoring 50,000 images may take longer. Therefore
rank 0 sends heartbeats through the store while it works alone, and the others enter the next collective when
it has finished.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.checkpoint.tensor_stream import LazyTensors, meta_tensors

if TYPE_CHECKING:
    from diffusion.system.signals import StopRequest

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # longer work of rank 0 alone is waited for outside a collective
HEARTBEATS, DONE = "alone/beats", "alone/done"  # keys of the store: a counter, and the last finished work
POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 10.0
BUCKET = 16 * 2**20  # numbers that are worked on at a time
# Parts of gloo's messages for a broken connection, which has no error type, and of NCCL's, whose type it
# shares with other errors.
BROKEN = (
    "closed by peer",
    "closed by remote peer",
    "reset by peer",
    "Corrupted pipe",
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

Item = TypeVar("Item")
Value = TypeVar("Value")


class RankFailed(TemporaryError):
    """Another rank has ended, so that this one cannot continue."""


def buckets(items: Sequence[Item], tensor_of: Callable[[Item], Tensor]) -> Iterator[list[Item]]:
    """Yield the items in order, in lists whose tensors have one type and at most BUCKET numbers.

    A single larger tensor is a list by itself.
    """
    bucket: list[Item] = []
    size = 0
    for item in items:
        tensor = tensor_of(item)
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != tensor_of(bucket[0]).dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += tensor.numel()
    if bucket:
        yield bucket


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
                for bucket in buckets(tensors, lambda tensor: tensor):
                    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                    dist.all_reduce(flat)
                    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
                    for tensor, part in zip(bucket, parts, strict=True):
                        tensor.copy_(part.view(tensor.shape))

    def all_reduce_min(self, number: int) -> int:
        """Return the least of the ranks' numbers."""
        least = torch.tensor(number)
        if self.world_size > 1:
            with translate_dist_errors():
                dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def pad_to_batch(self, values: Tensor, share: slice, count: int) -> Tensor:
        """Return `values` (n, rows of this share) within zeros (n, count), to be summed over the ranks."""
        if self.world_size == 1:
            return values
        padded = values.new_zeros(len(values), count)
        padded[:, share] = values
        return padded

    def agree_on_stop(self, stop: "StopRequest") -> None:
        """Raise Interrupted on all ranks at the same step if one of them has received a signal."""
        if self.world_size > 1:
            number = torch.tensor(stop.signal or 0)
            with translate_dist_errors():
                dist.all_reduce(number, dist.ReduceOp.MAX)
            if not number:
                return  # a signal that arrived meanwhile is agreed on after the next step
            stop.signal = int(number)
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
            first, meta, values = _from_rank_zero((identity, dict(tensors), counters))
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
                tensor = torch.empty_like(meta[name], device="cpu")
            with translate_dist_errors():
                dist.broadcast(tensor, 0)
            return tensor

        return SavedState(LazyTensors(meta, load), values)


def _from_rank_zero(value: Value) -> Value:
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


@contextmanager
def translate_dist_errors() -> Iterator[None]:
    """Raise RankFailed for torch's errors about a broken connection; other errors pass unchanged."""
    try:
        yield
    except RuntimeError as error:
        if not is_broken_connection(error):
            raise
        raise RankFailed(
            f"another process of this training has ended or is out of reach ({_first_sentence(error)}): the "
            "same command resumes from the saved state"
        ) from error


def is_broken_connection(error: RuntimeError) -> bool:
    """Whether another rank or the store is out of reach."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    return any(mark in str(error) for mark in BROKEN)


def _first_sentence(error: RuntimeError) -> str:
    """Return the error's first sentence, without the line in gloo's source and its advice."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". ")[0]


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

    All ranks must enter it at the same place with the same `what`, and a collective before the next one.
    RankFailed if rank 0 sends no heartbeat for the timeout of a collective.
    """
    if group.store is None or group.world_size == 1:
        yield
    elif group.is_rank_zero:
        with _heartbeats(group.store):
            try:
                yield
            finally:
                with translate_dist_errors():
                    group.store.set(DONE, what)
    else:
        yield
        with translate_dist_errors():
            wait_for_rank_zero(group.store, what, COLLECTIVE_TIMEOUT.total_seconds())


def wait_for_rank_zero(
    store: Store,
    what: str,
    timeout: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until rank 0 has finished `what`; RankFailed after `timeout` seconds without a heartbeat."""
    beats, since = -1, now()
    while not (store.check([DONE]) and store.get(DONE).decode() == what):
        if (found := store.add(HEARTBEATS, 0)) != beats:
            beats, since = found, now()
        elif now() - since > timeout:
            raise RankFailed(
                f"the first process of this training has sent no heartbeat for {timeout:,.0f} s: the same "
                "command resumes from the saved state"
            )
        pause(POLL_SECONDS)


@contextmanager
def _heartbeats(store: Store) -> Iterator[None]:
    """Send heartbeats from a thread during the block."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            try:
                store.add(HEARTBEATS, 1)
            except RuntimeError:  # the store is gone, which the main thread will notice
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
