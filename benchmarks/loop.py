"""The overhead of the training loop around the network: `python -m benchmarks.loop`.

Goal: data, noise, loss, clipping, optimiser, EMA and logging take under 5% of a step of the cifar10 profile
on two CPU cores. They are timed in the real loop with the real spool and a placeholder network, which
computes nothing but has the parameters and gradients: the difference of two long steps would be lost in their
variation. `--small` is a smoke test.
"""

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.config import load
from diffusion.images.store import ImageStore, write_store
from diffusion.model.unet import UNet
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_step import new_state
from tracking.spool.spool_writer import Spool

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
GOAL = 0.05


class GivesGradients(torch.autograd.Function):
    """The identity in `x`; its backward pass gives every parameter a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """Return a copy of `x`."""
        ctx.parameters = parameters
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """One small gradient of every parameter's shape, none for `x`."""
        return None, *(torch.full_like(parameter, 1e-3) for parameter in ctx.parameters)


class Placeholder(nn.Module):
    """A placeholder for the network: no work, but its parameters and their gradients."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.channels = network.spec.out_channels

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """As the network: (B, C, H, W) → (B, C or 2C, H, W)."""
        repeated = x.repeat(1, self.channels // x.shape[1], 1, 1)
        return GivesGradients.apply(repeated, *self.network.parameters())  # type: ignore[no-any-return]


class Clock(Observer):
    """Record the end of every step and log its means into a spool."""

    def __init__(self, spool: Spool) -> None:
        self.ended: list[float] = []
        self._spool = spool

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Into the spool."""
        self._spool.metrics(step, values)

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Note the time."""
        self.ended.append(time.perf_counter())


def seconds(plan: TrainPlan, store: ImageStore, folder: Path, *, placeholder: bool) -> float:
    """Median seconds of a step after the first, logging at every one."""
    state = new_state(plan, CPU)
    if placeholder:
        state.network = Placeholder(state.network)  # type: ignore[assignment]
    clock = Clock(Spool(folder, "benchmark", "benchmark", "benchmark"))
    train(state, store, ProcessGroup(CPU), clock, lambda state: None, lambda: None)
    return statistics.median(b - a for a, b in itertools.pairwise(clock.ended))


def cifar10(folder: Path, steps: int, **changes: Any) -> tuple[TrainPlan, ImageStore]:
    """The profile's training of a few steps, on random images."""
    config = load(ROOT / "profiles/cifar10.yaml")
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    meta = {"name": "cifar10", "classes": [], "image_size": 32, "channels": 3}
    store = write_store(folder / "store", images, None, meta)
    plan = plan_training(config, store.meta, CPU)
    train = {**plan.train.model_dump(), "steps": steps, "log_every": 1, **changes}
    return plan.model_copy(update={"train": type(plan.train)(**train)}), store


def main() -> None:
    small = "--small" in sys.argv
    changes = {"batch_size": 2, "microbatch": 2} if small else {"microbatch": 32}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, store = cifar10(folder, 12, **changes)
        around = seconds(plan, store, folder / "around", placeholder=True)
        plan, store = cifar10(folder, 2, **changes)
        whole = seconds(plan, store, folder / "whole", placeholder=False)
    share, mark = around / whole, "reached" if around < GOAL * whole else "MISSED"
    print(
        f"cifar10 on {torch.get_num_threads()} cores, {plan.precision}: a step of "
        f"{plan.train.batch_size} images takes {whole:.2f} s, the loop around the network "
        f"{around * 1e3:.0f} ms: {share:.2%} (goal: under {GOAL:.0%}; {mark})"
    )


if __name__ == "__main__":
    main()
