"""The memory of a training step: an estimate, what fits, and the hint if nothing does.

A classifier is a U-Net's encoder and counts as the whole U-Net: an upper bound.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from diffusion.model.counted_passes import activation_bytes, count_parameters
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.weights_header import Unfilled
from diffusion.system.devices import is_out_of_memory
from diffusion.system.errors import DiffctlError
from diffusion.system.memory import machine_memory
from diffusion.train.distributed.sharding import shard_units
from diffusion.train.plan import TrainPlan

IN_CODE_DIGEST = False  # diffusion/code_digest.py

TRAIN_BYTES = 20  # per parameter: weight, EMA, gradient and Adam's two moments, in fp32
# Per parameter of the gathered units of a sharded network, in fp32: the one that computes and the next, each
# both gathered and as weights, and two gradients in reduction.
GATHERED_BYTES = 24
PROFILE_BYTES = 4  # per parameter of one more average
MIN_BYTES = TRAIN_BYTES // 2  # per parameter at half precision
# Parts of messages of torch, cuBLAS, cuDNN (which differ by version) and Triton, which have no error type.
STEP_SHARE = 0.8  # of a machine's memory that a step may take if it cannot be tried


def exceeds_memory(spec: NetworkSpec, total: int) -> bool:
    """Whether training takes more than `total` bytes in any case, without building the network."""
    return MIN_BYTES * spec.least_parameters() > total


def step_bytes(spec: NetworkSpec, images: int, shards: int = 1) -> int:
    """Return the maximum memory of a step of `images` in bytes, for one of `shards`."""
    state = count_parameters(spec) * TRAIN_BYTES
    if shards > 1:
        state = -(-state // shards) + GATHERED_BYTES * _largest_unit(spec)
    return state + activation_bytes(spec, images)


@cache
def _largest_unit(spec: NetworkSpec) -> int:
    """Return the number of parameters of the largest unit that is gathered at a time."""
    with torch.device("meta"), Unfilled():
        parts = shard_units(build_network(spec))
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    *stages, whole = counts  # the last unit has what is in no stage
    return max([*stages, whole - sum(stages)])


def profile_bytes(spec: NetworkSpec, profiles: int) -> int:
    """Return the bytes of power-function averages, in memory and in a snapshot on disk."""
    return PROFILE_BYTES * profiles * count_parameters(spec)


def fitting_microbatch(spec: NetworkSpec, images: int, total: int, shards: int = 1) -> int:
    """Halve `images` until a step takes at most 80% of `total`, the installed memory; at least 1."""
    while images > 1 and step_bytes(spec, images, shards) > STEP_SHARE * total:
        images = -(-images // 2)
    return images


def initial_microbatch(plan: TrainPlan, images: int, total: int, shards: int, *, whole_batch: bool) -> int:
    """Return how many of a process's images a forward pass has at first, with `total` bytes of memory.

    `whole_batch` is that of the objective.
    """
    train, spec = plan.train, plan.network
    if train.microbatch is None or whole_batch:
        return images
    if train.microbatch != "auto":
        return min(train.microbatch, images)
    profiles = profile_bytes(spec, len(train.sigma_rels))
    return fitting_microbatch(spec, images, total - profiles // shards, shards)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Return (total, free) bytes of the GPU, or of the machine or its container."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    return machine_memory()


def oom_hint(prefix: str, *, whole_batch: bool = False) -> str:
    """Return what to change if memory runs out; `prefix` is that of the sections in params.yaml.

    `whole_batch` is that of the objective, which then has no micro-batch.
    """
    size = "batch_size" if whole_batch else "microbatch (or set it to auto)"
    return (
        f"lower {prefix}train.{size}, make the model smaller, or set "
        f"{prefix}model.gradient_checkpointing: true if the network has it"
    )


class OutOfMemory(DiffctlError):
    """The memory does not suffice for the work, however often it is repeated."""


@contextmanager
def translate_oom(prefix: str) -> Iterator[None]:
    """Raise OutOfMemory with the `oom_hint` for out-of-memory errors of torch and numpy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: {oom_hint(prefix)}") from None
