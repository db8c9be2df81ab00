"""What `python -m benchmarks.gpu` measures with: sizes, memory, operations, and where a GPU's time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec

BATCHES = {"cifar10": 128, "imagenet64": 128, "imagenet64-adm": 64}  # images a step that one GPU takes of it
LISTED = 8  # kernels of a profile


class Size(NamedTuple):
    """How much is measured: `warm` steps, `timed` and `profiled` ones; `small` only tries whether it runs."""

    small: bool
    warm: int
    timed: int
    profiled: int
    log_every: int
    data: int
    repeats: int
    matrix: int

    @property
    def compile(self) -> bool:
        """Whether networks are compiled, which is among the warm steps."""
        return not self.small

    @property
    def ddim_steps(self) -> int:
        """Steps of sampling."""
        return 2 if self.small else 20

    def batch(self, profile: str) -> int:
        """Images a step."""
        return 2 if self.small else BATCHES[profile]


WHOLE = Size(False, warm=10, timed=40, profiled=5, log_every=10, data=8192, repeats=5, matrix=8192)
SMALL = Size(True, warm=1, timed=2, profiled=1, log_every=1, data=16, repeats=1, matrix=128)


class Result(NamedTuple):
    """Images a second, the most bytes, operations of an image, and of a profile what was idle and busiest."""

    rate: float
    memory: int
    flop: int
    idle: float | None = None
    top: tuple[tuple[str, float], ...] = ()


class Window:
    """A part of the work that is profiled: the share of its time without a kernel, and its busiest kernels.

    `top` has their shares of the window's time; on a CPU those of operations, which may overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self.idle: float | None = None
        self.top: tuple[tuple[str, float], ...] = ()
        self._device = device
        self._kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
        self._profile: profile | None = None
        self._began = 0.0

    def open(self) -> None:
        """Begin, once all work that was queued is done."""
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        synchronize(self._device)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._began = time.perf_counter()

    def close(self) -> None:
        """End, once the window's work is done."""
        assert self._profile is not None, "nothing was opened"
        synchronize(self._device)
        wall = time.perf_counter() - self._began
        self._profile.stop()
        found: dict[str, float] = {}
        for event in self._profile.key_averages():
            if event.device_type == self._kind:
                spent = (
                    event.self_device_time_total if self._device.type == "cuda" else event.self_cpu_time_total
                )
                found[event.key] = found.get(event.key, 0.0) + spent / 1e6
        self.idle = max(0.0, 1 - sum(found.values()) / wall)
        busiest = sorted(found.items(), key=lambda item: -item[1])[:LISTED]
        self.top = tuple((name, spent / wall) for name, spent in busiest)


def synchronize(device: torch.device) -> None:
    """Wait until the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """The most bytes that the block holds on the device; 0 on a CPU."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) if cuda else 0


def flop(spec: UNetSpec, *, backward: bool) -> int:
    """Floating-point operations of one image's pass through the network; `backward` with that back too."""
    network = UNet(spec).to("meta")
    x = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size, device="meta")
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        output = network(x, t, t if spec.num_classes else None).sum()
        if backward:
            output.backward()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a bf16 matrix product, the best of several runs: what there is to reach."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(20):
        synchronize(device)
        began = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
