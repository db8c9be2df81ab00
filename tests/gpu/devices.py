"""Devices that a test of what a GPU does is run on: the CPU shows that the test itself is sound."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from diffusion.train.precision import set_tf32

GPU = pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu, id="cuda")
CPU = torch.device("cpu")
DEVICES = [pytest.param(CPU, id="cpu"), GPU]
LONG_ON_CPU = [pytest.param(CPU, marks=pytest.mark.long, id="cpu"), GPU]
SLOW_ON_CPU = [pytest.param(CPU, marks=pytest.mark.slow, id="cpu"), GPU]


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Within it float32 products are float32's own, without TF32."""
    set_tf32(False, device)
    try:
        yield
    finally:
        set_tf32(True, device)


@contextmanager
def waiting_fails(device: torch.device) -> Iterator[None]:
    """Within it whatever has the host wait for the GPU raises; a CPU knows no such thing."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
