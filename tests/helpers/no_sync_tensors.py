"""A device without values, on which any operation that waits for a GPU fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.system import devices

DEVICE = torch.device("meta")
BY_VALUE = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "equal", "is_nonzero")


class Waited(AssertionError):
    """The host would wait for the device."""


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Treat tensors of the meta device as a GPU's: an operation that waits for it raises Waited.

    These are reads of values, and synchronous copies to or from the host, except of a single number, which
    a GPU's kernel takes as an argument. A tensor created there from Python numbers is such a copy.
    """
    with _NothingMade(), _NothingRead():
        yield


class _NothingRead(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        here = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        if name in BY_VALUE and any(one.device == DEVICE for one in here):
            raise Waited(f"{name} looks at values")
        if name == "index" and here[0].device == DEVICE:
            for index in here[1:]:
                if index.dtype == torch.bool or index.device != DEVICE:
                    raise Waited(f"an index of {index.dtype} on {index.device}")
        if name == "_to_copy":
            between = kwargs.get("device") not in (None, here[0].device)
            if between and not kwargs.get("non_blocking"):
                raise Waited(f"a copy from {here[0].device} to {kwargs['device']}")
        if name == "copy_" and here[0].device != here[1].device and not (len(args) > 2 and args[2]):
            raise Waited(f"a copy from {here[1].device} to {here[0].device}")
        return func(*args, **kwargs)


class _NothingMade(TorchFunctionMode):
    """Within it no tensor is created on the device from Python numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and made.device == DEVICE:
            raise Waited(f"{func.__name__} of Python's numbers")
        return made


class Float64(AssertionError):
    """A float64 tensor was made on the device."""


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device == DEVICE and tensor.dtype == torch.float64:
                raise Float64(func.overloadpacket.__name__)
        return made


@contextmanager
def no_float64() -> Iterator[torch.device]:
    """Yield the device as one without float64: a float64 tensor on it raises Float64."""
    with pytest.MonkeyPatch.context() as patch, _Refusing():
        patch.setattr(devices, "WITHOUT_FLOAT64", (DEVICE.type,))
        yield DEVICE
