"""A device without values that has no float64, as Apple's GPUs have none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.system import device_transfer
from tests.helpers.no_sync_tensors import DEVICE


class Float64(AssertionError):
    """A float64 tensor was made on the device."""


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.device == DEVICE and tensor.dtype == torch.float64:
                raise Float64(func.overloadpacket.__name__)
        return made


@contextmanager
def no_float64() -> Iterator[torch.device]:
    """The device, known for the block to have no float64: whoever makes one there raises Float64."""
    with pytest.MonkeyPatch.context() as patch, _Refusing():
        patch.setattr(device_transfer, "WITHOUT_FLOAT64", (DEVICE.type,))
        yield DEVICE
