"""Check by its header that a file holds the weights of the network that it describes, before building it.

Metadata can describe any network that a section allows. The header lists all weights of the file, so that a
description never costs more memory than the weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from diffusion.model.network_registry import NetworkSpec
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.section import brief

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_HEADER_BYTES = 8 * 2**20  # bytes; a tensor takes about a hundred
MAX_TENSORS = 10_000  # tensors; the largest published network has some 1,100
NAME = "model.safetensors"  # of a training's model file
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Spec = TypeVar("Spec", bound=NetworkSpec)
Module = TypeVar("Module", bound=torch.nn.Module)


def open_weights(path: Path) -> Any:
    """Open a safetensors file, a context; UsageError without one, DiffctlError for another file."""
    if not path.is_file():
        raise UsageError(f"no model file at {path}: train one with `diffctl run`, or name another file")
    try:
        with open(path, "rb") as file:
            header, first = int.from_bytes(file.read(8), "little"), file.read(1)
        if first != b"{":
            remedy = f"give a file of weights that diffctl wrote, such as models/{NAME}"
            raise DiffctlError(f"{path} is not a safetensors file: {remedy}")
        if header > MAX_HEADER_BYTES:
            raise DiffctlError(f"{path} is not a whole safetensors file (its header has {header:,} bytes)")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DiffctlError(f"{path} is not a whole safetensors file ({brief(error, str)})") from None


class Unfilled(TorchFunctionMode):
    """A context that skips initialisation, for which torch loads its compiler on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fills = getattr(func, "__module__", "") == nn.init.__name__
        return kwargs["tensor"] if fills else func(*args, **kwargs)


def build_matching(build: Callable[[Spec], Module], spec: Spec, path: Path) -> Module:
    """Build the spec's network; DiffctlError unless the file has its weights, by name, type and shape."""
    with open_weights(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        has = {name: f"{one.get_dtype()} {one.get_shape()}" for name, one in slices.items()}
    if len(has) > MAX_TENSORS:
        raise DiffctlError(f"{path} holds {len(has):,} tensors, and no network has more than {MAX_TENSORS:,}")
    try:
        with torch.device("meta"), Unfilled():  # nothing is allocated, and no generator draws
            tensors = build(spec).state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:  # sizes that no tensor can have
        raise DiffctlError(f"{path} describes an impossible network ({brief(error, reason)})") from None
    wants = {name: f"{DTYPE_NAMES.get(one.dtype)} {list(one.shape)}" for name, one in tensors.items()}
    for name in sorted(wants.keys() | has.keys()):
        if wants.get(name) != has.get(name):
            raise DiffctlError(
                f"{path}: its weights do not fit its own description ({name} is {has.get(name, 'missing')}, "
                f"and the network has {wants.get(name, 'none of that name')})"
            )
    with Unfilled():
        return build(spec)
