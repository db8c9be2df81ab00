"""Devices of the GPU tests: the CPU shows that a test itself is correct."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from diffusion.train.loop import tf32

GPU = pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu, id="cuda")
CPU = torch.device("cpu")
DEVICES = [pytest.param(CPU, id="cpu"), GPU]
LONG_ON_CPU = [pytest.param(CPU, marks=pytest.mark.long, id="cpu"), GPU]
SLOW_ON_CPU = [pytest.param(CPU, marks=pytest.mark.slow, id="cpu"), GPU]


def exactly(device: torch.device) -> AbstractContextManager[None]:
    """Compute float32 products without TF32 in a block."""
    return tf32(False, device)


@contextmanager
def waiting_fails(device: torch.device) -> Iterator[None]:
    """Raise at any synchronisation with a GPU; do nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
