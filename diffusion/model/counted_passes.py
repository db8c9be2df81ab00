"""What a network's forward passes take: parameters, FLOPs, kept activations, and the output's shape."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from diffusion.model.layers import example_pass
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.weights_header import Unfilled
from diffusion.system.threads import single_thread

IN_CODE_DIGEST = False  # diffusion/code_digest.py

QUICK = 10**9  # products of parameters and pixels; a forward pass below takes milliseconds
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
    """Run a forward pass of this number of images; return the bytes that it keeps, and its output's shape."""
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # a reference, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = example_pass(network, spec, images)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = sum(storage.nbytes() for address, storage in found.items() if address not in weights)
    return kept, tuple(getattr(output, "shape", ()))
