"""The memory of a training step: an estimate, what fits, and the hint if nothing does; and FLOPs.

A classifier counts as the U-Net whose encoder it is: an upper bound.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.weights_header import Unfilled
from diffusion.system.errors import DiffctlError
from diffusion.system.memory import machine_memory
from diffusion.system.threads import single_thread
from diffusion.train.distributed.sharding import shard_units

IN_CODE_DIGEST = False  # diffusion/code_digest.py

TRAIN_BYTES = 20  # per parameter: weight, EMA, gradient and Adam's two moments, in fp32
# Per parameter of the gathered units of a sharded network, in fp32: the one that computes and the next, each
# both gathered and as weights, and two gradients in reduction.
GATHERED_BYTES = 24
PROFILE_BYTES = 4  # per parameter of one more average
MIN_BYTES = TRAIN_BYTES // 2  # per parameter at half precision
QUICK = 10**9  # products of parameters and pixels; a forward pass below takes milliseconds
# Parts of messages of torch, cuBLAS, cuDNN (which differ by version) and Triton, which have no error type.
OOM_MARKS = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
STEP_SHARE = 0.8  # of a machine's memory that a step may take if it cannot be tried
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch has no formula for it
UPSAMPLED_CONV = 9 * 4 / 16  # nine taps at each of four pixels, where the CPU kernel needs sixteen products


class FlopCounter(TorchDispatchMode):
    """A context that counts the FLOPs of the forward passes within it: `total`.

    An operation is a multiplication or an addition of a matrix product or a convolution, by torch's formulas.
    Normalisation and other elementwise work are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that torch does not load its compiler."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        if kind is CPU_ATTENTION:
            self.total += sdpa_flop_count(*(part.shape for part in args[:3]))  # type: ignore[no-untyped-call]
        elif kind in flop_registry:
            counted = flop_registry[kind](*args, **(kwargs or {}), out_val=output)
            # A transposed convolution with a fixed kernel is `kernels.upsampled_conv` on a CPU.
            is_transposed = kind is torch.ops.aten.convolution and args[6]
            is_upsampled = is_transposed and not isinstance(args[1], nn.Parameter)
            self.total += round(counted * UPSAMPLED_CONV) if is_upsampled else counted
        return output


@cache
def count_parameters(spec: NetworkSpec) -> int:
    """Return the number of parameters."""
    with torch.device("meta"), Unfilled():
        return sum(parameter.numel() for parameter in build_network(spec).parameters())


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


def activation_bytes(spec: NetworkSpec, images: int) -> int:
    """Return the bytes that a forward pass keeps in fp32, linear after the first image."""
    one, two, *_ = _counted_passes(spec)
    return one + (images - 1) * (two - one)


def forward_flops(spec: NetworkSpec) -> int:
    """Return the FLOPs of one image's forward pass."""
    return _counted_passes(spec)[2]


def output_shape(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the shape of the network's output for one image; empty if it is no tensor."""
    return _counted_passes(spec)[3]


@cache
def _counted_passes(spec: NetworkSpec) -> tuple[int, int, int, tuple[int, ...]]:
    """Run forward passes; return the kept bytes of one and of two images, the FLOPs and the shape of one.

    The passes are real if they are quick, else they use fake tensors, which select the same kernels but hold
    no memory. Meta tensors would select another attention kernel, which keeps more.
    """
    with ExitStack() as stack:
        if count_parameters(spec) * math.prod(spec.size) < QUICK:
            stack.enter_context(single_thread())
            stack.enter_context(torch.random.fork_rng(devices=[]))  # dropout draws from it
        else:
            from torch._subclasses.fake_tensor import FakeTensorMode  # loads torch's compiler

            stack.enter_context(FakeTensorMode())
        with Unfilled():
            network = build_network(spec)
        with FlopCounter() as operations:
            one, shape = _kept_bytes(network, spec, 1)
        return one, _kept_bytes(network, spec, 2)[0], operations.total, shape


def _kept_bytes(network: nn.Module, spec: NetworkSpec, images: int) -> tuple[int, tuple[int, ...]]:
    """Run a forward pass of so many images; return the bytes that it keeps, and its output's shape."""
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # a reference, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = torch.empty(images, *spec.shape)
        t = torch.zeros(images, dtype=torch.int64)
        output = network(x, t, t if spec.num_classes else None)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = sum(storage.nbytes() for address, storage in found.items() if address not in weights)
    return kept, tuple(getattr(output, "shape", ()))


def fitting_microbatch(spec: NetworkSpec, images: int, total: int, shards: int = 1) -> int:
    """Halve `images` until a step takes at most 80% of `total`, the installed memory; at least 1."""
    while images > 1 and step_bytes(spec, images, shards) > STEP_SHARE * total:
        images = -(-images // 2)
    return images


def device_memory(device: torch.device) -> tuple[int, int]:
    """Return (total, free) bytes of the GPU, or of the machine or its container."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    return machine_memory()


def oom_hint(prefix: str) -> str:
    """Return what to change if memory runs out; `prefix` is that of the sections in params.yaml."""
    return (
        f"lower {prefix}train.microbatch (or set it to auto), make the model smaller, or set "
        f"{prefix}model.gradient_checkpointing: true if the network has it"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is that the GPU's or the CPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in OOM_MARKS)


@contextmanager
def translate_oom(prefix: str) -> Iterator[None]:
    """Raise DiffctlError with the `oom_hint` for out-of-memory errors of torch and numpy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise DiffctlError(f"out of memory: {oom_hint(prefix)}") from None
