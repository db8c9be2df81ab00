"""What a training step takes of the memory, which micro-batch fits, and what to say when none does."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusion.model.config import NetworkSpec
from diffusion.model.registry import build_network
from diffusion.system.errors import DiffctlError

NetworkBuilder = Callable[[NetworkSpec], nn.Module]

TRAIN_BYTES = 20  # of a parameter in training: weights, EMA, gradient and Adam's two moments, in fp32
# What torch, cuBLAS, cuDNN (by its version) and Triton say in errors that have no type of their own.
SHORTAGES = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
STEP_SHARE = 0.8  # of a machine's memory that a step may take where nothing can be tried


def count_parameters(spec: NetworkSpec, build: NetworkBuilder = build_network) -> int:
    """How many numbers the network learns."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(spec).parameters())


def step_bytes(spec: NetworkSpec, images: int, build: NetworkBuilder = build_network) -> int:
    """What a training step of that many images takes at most."""
    return count_parameters(spec, build) * TRAIN_BYTES + saved_bytes(spec, images, build)


@cache
def saved_bytes(spec: NetworkSpec, batch: int, build: NetworkBuilder = build_network) -> int:
    """Bytes that a forward pass of `batch` images keeps for the backward pass, in fp32.

    Fake tensors take the same kernels as real ones and hold no memory. On the meta device attention takes
    another path, which keeps what the real one does not.
    """
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # kept, so that its address is not used again
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network = build(spec)
        x = torch.empty(batch, spec.in_channels, spec.image_size, spec.image_size)
        t = torch.empty(batch, dtype=torch.int64)
        network(x, t, t if spec.num_classes else None)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    return sum(storage.nbytes() for address, storage in found.items() if address not in weights)


def fitting_microbatch(
    spec: NetworkSpec, images: int, total: int, build: NetworkBuilder = build_network
) -> int:
    """The images, halved until a step of so many takes at most 80% of `total` bytes; at least 1.

    By the memory that there is, not by what is free now: the same machine always finds the same.
    """
    while images > 1 and step_bytes(spec, images, build) > STEP_SHARE * total:
        images = -(-images // 2)
    return images


def device_memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of the GPU; for the CPU the machine's, or its container's where those are less."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    import psutil

    memory, limit = psutil.virtual_memory(), cgroup_limit()
    return min(memory.total, limit), min(memory.available, limit)


def cgroup_limit(files: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process's control group may take (cgroups(7), both versions); sys.maxsize for no limit.

    A group's limit holds for the groups within it, too. A container may see its own group as the root.
    """
    limit = sys.maxsize
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        group, name = (files / "memory", "memory.limit_in_bytes") if controllers else (files, "memory.max")
        for part in ("", *Path(path).parts[1:]):
            group /= part
            with suppress(OSError, ValueError):  # there is none, or it is `max`
                limit = min(limit, int((group / name).read_text(encoding="utf-8")))
    return limit


def remedy(prefix: str) -> str:
    """What to lower where the memory does not suffice; `prefix` stands before its sections in params.yaml."""
    return (
        f"lower {prefix}train.microbatch (or set it to auto), set {prefix}model.gradient_checkpointing: "
        "true, or make the model smaller"
    )


def is_shortage(error: RuntimeError) -> bool:
    """Whether a GPU's or the CPU's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in SHORTAGES)


@contextmanager
def shortage_told(prefix: str) -> Iterator[None]:
    """Turn what torch and numpy raise for a lack of memory into a sentence with the `remedy`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_shortage(error):
            raise
        raise DiffctlError(f"the memory does not suffice: {remedy(prefix)}") from None
