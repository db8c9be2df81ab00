"""How a network is run: its precision, memory layout and compilation."""

import copy
import threading
import warnings
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffusion.model.layers import Exact
from diffusion.process.denoiser import Network
from diffusion.system.errors import DiffctlWarning, first_line

Precision = Literal["fp32", "bf16"]

Module = TypeVar("Module", bound=nn.Module)


def memory_layout(precision: Precision, device: torch.device) -> torch.memory_format:
    """Return the layout of weights and feature maps: channels last for a GPU's bf16 convolutions."""
    if device.type == "cuda" and precision == "bf16":
        return torch.channels_last
    return torch.contiguous_format


def autocast(network: Network, precision: Precision, *, fast: bool = False) -> Network:
    """Return the network under autocast: float32 in and out, products and convolutions in `precision`.

    `fast` compiles a plain module.
    """
    if precision == "bf16":
        network = to_bf16(network)
    if fast and isinstance(network, nn.Module):
        network = compile_network(network)
    if precision == "fp32":
        return network

    def cast(x: Tensor, t: Tensor, labels: Tensor | None, **further: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return network(x, t, labels, **further).float()

    return cast


def freeze(network: Module) -> Module:
    """Return the network in eval mode and frozen; its rounded copy is kept as long as it exists."""
    _FROZEN[network] = None
    return network.eval().requires_grad_(False)


def to_bf16(network: Network) -> Network:
    """Return a bfloat16 copy of a frozen module, which autocast would round at every call; others as is."""
    if not isinstance(network, nn.Module) or any(weight.requires_grad for weight in network.parameters()):
        return network
    if network not in _FROZEN:
        return _rounded_copy(network)
    tensors = (*network.parameters(), *network.buffers())
    # The address and version counter of each tensor: they change when weights change.
    state = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    kept = _FROZEN[network]
    if kept is None or kept[0] != state:
        kept = _FROZEN[network] = (state, _rounded_copy(network))
    return kept[1]


# Frozen networks with the state and the rounded copy of each.
_FROZEN: WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], nn.Module] | None] = WeakKeyDictionary()


def _rounded_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, Exact):
            module.to(torch.bfloat16)
    device = next(network.parameters()).device
    layout = memory_layout("bf16", device)
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        # AMX convolutions copy other layouts to and fro. In training the group norms would lose that gain.
        layout = torch.channels_last
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


GRAPHS = "reduce-overhead"  # torch.compile's mode that records a CUDA graph and replays it
WARM_UP_PASSES = 3  # of a graph: one warms up, one is recorded, one is replayed


def compile_mode(device: torch.device) -> str | None:
    """Return torch.compile's mode on the device; None is its default.

    A pass fits a CUDA graph: its shape is the same each time, the weights stay where they are, and no noise
    is drawn in it. torch keeps graphs by thread, and fails in others than the main one (pytorch#123177).
    """
    graphs = device.type == "cuda" and threading.current_thread() is threading.main_thread()
    return GRAPHS if graphs else None


class CompiledNetwork:
    """The network compiled for the shape of its first call; other shapes run without compilation.

    On a GPU its kernels are launched as one graph, for the thread of the first call. If the first passes
    fail, the network runs without compilation after one DiffctlWarning.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shape: tuple[torch.Size, torch.dtype, bool, int] | None = None
        self._mode: str | None = None
        self._fast: Network | None = None
        self._passes, self._failed = 0, False

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None, **further: Tensor) -> Tensor:
        """Return the network's output."""
        shape = x.shape, t.dtype, labels is None, threading.get_ident() if x.is_cuda else 0
        if self._shape is None:
            self._shape, self._mode = shape, compile_mode(x.device)
        if shape == self._shape and not self._failed:
            try:
                if self._fast is None:
                    self._fast = torch.compile(self._network, dynamic=False, mode=self._mode)
                output = self._fast(x, t, labels, **further)
                self._passes += 1
                # The next pass overwrites a graph's output.
                return output.clone() if self._mode == GRAPHS else output
            except (RuntimeError, AssertionError) as error:
                if self._passes >= WARM_UP_PASSES:
                    raise
                self._failed, self._fast = True, None
                why = first_line(error)
                message = f"the network cannot be compiled ({why}): sampling continues without that"
                warnings.warn(message, DiffctlWarning, stacklevel=2)
        return self._network(x, t, labels, **further)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, object]) -> "CompiledNetwork":
        """Wrap a copy of the network, not compiled yet."""
        return CompiledNetwork(copy.deepcopy(self._network, memo))


def compile_network(network: nn.Module) -> CompiledNetwork:
    """Return the network compiled once per device; its own dict holds it, elsewhere it would stay alive."""
    device = str(next(network.parameters()).device)
    kept: dict[str, CompiledNetwork] = network.__dict__.setdefault("_compiled_by_device", {})
    if device not in kept:
        kept[device] = CompiledNetwork(network)
    return kept[device]
