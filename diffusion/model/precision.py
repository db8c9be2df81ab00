"""Networks in lower precision: the cast of a network, and how its numbers lie in memory."""

import copy
from typing import Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffusion.model.compiled import compile_network
from diffusion.model.exact_conv import ExactConv2d
from diffusion.process.denoiser_output import Network

Precision = Literal["fp32", "bf16"]

Module = TypeVar("Module", bound=nn.Module)


def memory_layout(precision: Precision, device: torch.device) -> torch.memory_format:
    """How weights and feature maps lie in memory: channels last for a GPU's bf16 convolutions."""
    if device.type == "cuda" and precision == "bf16":
        return torch.channels_last
    return torch.contiguous_format


def frozen_layout(device: torch.device) -> torch.memory_format:
    """Return the layout of a rounded copy: as in training, but channels last on a CPU with AMX.

    AMX convolutions need each pixel's channels adjacent and copy other layouts to and fro.
    A backward pass loses by its group norms what it would gain.
    """
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.channels_last
    return memory_layout("bf16", device)


def autocast(network: Network, precision: Precision, *, fast: bool = False) -> Network:
    """The network under autocast: float32 in and out, matrix products and convolutions in `precision`.

    `fast` has a plain module compiled, which pays from many passes on.
    """
    if precision == "bf16":
        network = to_bf16(network)
    if fast and isinstance(network, nn.Module):
        network = compile_network(network)
    if precision == "fp32":
        return network

    def cast(x: Tensor, t: Tensor, labels: Tensor | None, **augmentation: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return network(x, t, labels, **augmentation).float()

    return cast


def freeze(network: Module) -> Module:
    """The network in eval mode and frozen, as a file gives it: its rounded copy is kept while it lives.

    Not for the EMA of a training: its next step makes a copy worthless, which would only hold memory.
    """
    _SETTLED[network] = None
    return network.eval().requires_grad_(False)


def to_bf16(network: Network) -> Network:
    """Return a copy of a frozen network with bfloat16 weights, which autocast would round at every call.

    A network that trains, or one that is no plain module, is returned as it is.
    """
    if not isinstance(network, nn.Module) or any(weight.requires_grad for weight in network.parameters()):
        return network
    if network not in _SETTLED:
        return _rounded_copy(network)
    kept, state = _SETTLED[network], _state(network)
    if kept is None or kept.state != state:
        kept = _SETTLED[network] = _Kept(state, _rounded_copy(network))
    return kept.copy


_State = list[tuple[int, int]]


class _Kept(NamedTuple):
    """A rounded copy, and the state of the network that it is of."""

    state: _State
    copy: nn.Module


_SETTLED: WeakKeyDictionary[nn.Module, _Kept | None] = WeakKeyDictionary()


def _state(network: nn.Module) -> _State:
    """Return the address and version counter of each tensor: they change when weights change."""
    tensors = (*network.parameters(), *network.buffers())
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _rounded_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, ExactConv2d):
            module.to(torch.bfloat16)
    layout = frozen_layout(next(network.parameters()).device)
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]
