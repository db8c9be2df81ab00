"""What a training step takes of the memory, which micro-batch fits, and what to say when none does."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion.model.flops import FlopCounter
from diffusion.model.model_config import NetworkSpec
from diffusion.model.network_registry import build_network
from diffusion.system.errors import DiffctlError
from diffusion.system.machine_memory import machine_memory
from diffusion.system.threads import single_thread
from diffusion.train.distributed.sharding import shard_units

NetworkBuilder = Callable[[NetworkSpec], nn.Module]

TRAIN_BYTES = 20  # of a parameter in training: weights, EMA, gradient and Adam's two moments, in fp32
# Of a parameter of a sharded network's parts that are whole at a time, in fp32: the one that computes and the
# next, each gathered and laid out as its weights, and the gradients of one and of another being summed.
TOGETHER_BYTES = 24
AVERAGE_BYTES = 4  # of a parameter in one more average
HALF_BYTES = TRAIN_BYTES // 2  # what it could be in a precision of half as many
QUICK = 10**9  # products of a parameter and a pixel: an image's pass of fewer takes milliseconds
# What torch, cuBLAS, cuDNN (by its version) and Triton say in errors that have no type of their own.
SHORTAGES = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
STEP_SHARE = 0.8  # of a machine's memory that a step may take where nothing can be tried


class _Unfilled(TorchFunctionMode):
    """Parameters are not given their first values, which nobody looks at: torch imports much to do it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fills = getattr(func, "__module__", "") == nn.init.__name__
        return kwargs["tensor"] if fills else func(*args, **kwargs)


def count_parameters(spec: NetworkSpec, build: NetworkBuilder = build_network) -> int:
    """How many numbers the network learns."""
    return _counted_parameters(spec, build)


@cache
def _counted_parameters(spec: NetworkSpec, build: NetworkBuilder) -> int:
    with torch.device("meta"), _Unfilled():
        return sum(parameter.numel() for parameter in build(spec).parameters())


def exceeds_memory(spec: NetworkSpec, total: int) -> bool:
    """Whether training so many weights takes more than `total` bytes, found without building the network."""
    return HALF_BYTES * spec.least_parameters() > total


def step_bytes(spec: NetworkSpec, images: int, build: NetworkBuilder = build_network, shards: int = 1) -> int:
    """What a training step of that many images takes at most, of one of so many shards."""
    held = count_parameters(spec, build) * TRAIN_BYTES
    if shards > 1:
        held = -(-held // shards) + TOGETHER_BYTES * _largest_unit(spec, build)
    return held + activation_bytes(spec, images, build)


@cache
def _largest_unit(spec: NetworkSpec, build: NetworkBuilder) -> int:
    """How many numbers the largest part of a sharded network has that is put together at a time."""
    with torch.device("meta"), _Unfilled():
        parts = shard_units(build(spec))
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    *stages, whole = counts  # the last has what is in no stage
    return max([*stages, whole - sum(stages)])


def profile_bytes(spec: NetworkSpec, widths: int, build: NetworkBuilder = build_network) -> int:
    """What so many power-function averages take beside that, and a snapshot of them on the disk."""
    return AVERAGE_BYTES * widths * count_parameters(spec, build)


def activation_bytes(spec: NetworkSpec, images: int, build: NetworkBuilder = build_network) -> int:
    """Bytes that a forward pass of so many images keeps for the backward pass, in fp32.

    Every image after the first adds the same, so that two passes tell it of any number.
    """
    one, two, _ = _counted_passes(spec, build)
    return one + (images - 1) * (two - one)


def forward_flops(spec: NetworkSpec, build: NetworkBuilder = build_network) -> int:
    """How many operations one image's pass through the network takes."""
    *_, operations = _counted_passes(spec, build)
    return operations


@cache
def _counted_passes(spec: NetworkSpec, build: NetworkBuilder) -> tuple[int, int, int]:
    """`activation_bytes` of one and of two images, and the first's operations, by passes that are made.

    Really where that is quick, else with fake tensors, which take the same kernels as real ones and hold no
    memory; torch loads its compiler for them. On the meta device attention takes another path, which keeps
    what that does not.
    """
    quick = count_parameters(spec, build) * spec.image_size**2 < QUICK
    with _real_tensors() if quick else _fake_tensors():
        with _Unfilled():
            network = build(spec)
        with FlopCounter() as operations:
            one = _kept_bytes(network, spec, 1)
        return one, _kept_bytes(network, spec, 2), operations.total


def _kept_bytes(network: nn.Module, spec: NetworkSpec, images: int) -> int:
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # kept, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = torch.empty(images, spec.in_channels, spec.image_size, spec.image_size)
        t = torch.zeros(images, dtype=torch.int64)
        network(x, t, t if spec.num_classes else None)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    return sum(storage.nbytes() for address, storage in found.items() if address not in weights)


@contextmanager
def _real_tensors() -> Iterator[None]:
    """Within it dropout draws what nobody else would."""
    with single_thread(), torch.random.fork_rng(devices=[]):
        yield


def _fake_tensors() -> AbstractContextManager[object]:
    """Within it tensors have shapes and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # loads torch's compiler

    return FakeTensorMode()


def fitting_microbatch(
    spec: NetworkSpec, images: int, total: int, build: NetworkBuilder = build_network, shards: int = 1
) -> int:
    """The images, halved until a step of so many takes at most 80% of `total` bytes; at least 1.

    By the memory that there is, not by what is free now: the same machine always finds the same.
    """
    while images > 1 and step_bytes(spec, images, build, shards) > STEP_SHARE * total:
        images = -(-images // 2)
    return images


def device_memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of the GPU; for the CPU the machine's, or its container's where those are less."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    return machine_memory()


def oom_hint(prefix: str) -> str:
    """What to lower where the memory does not suffice; `prefix` stands before its sections in params.yaml."""
    return (
        f"lower {prefix}train.microbatch (or set it to auto), set {prefix}model.gradient_checkpointing: "
        "true, or make the model smaller"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the CPU's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in SHORTAGES)


@contextmanager
def translate_oom(prefix: str) -> Iterator[None]:
    """Turn what torch and numpy raise for a lack of memory into a sentence with the `oom_hint`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise DiffctlError(f"the memory does not suffice: {oom_hint(prefix)}") from None
