"""Training on a GPU against diffusers' own loop: `python -m benchmarks.gpu`.

For the profiles cifar10 and imagenet64: images/s, the share of the GPU's measured bf16 matrix rate, and peak
memory. The peer is the loop of diffusers' unconditional training example, in bf16, on a UNet2DModel of the
same shape. Without a GPU there is nothing to measure, which is said.
"""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from diffusion.config import load
from diffusion.images.store import ImageStore, write_store
from diffusion.model.unet import UNet
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import TrainPlan, plan_training
from diffusion.train.loop import Silent, new_state, train

ROOT = Path(__file__).parent.parent
BATCHES = {"cifar10": 128, "imagenet64": 128}  # images a step: the profile's, or what one GPU takes of it
CLASSES = {"cifar10": 0, "imagenet64": 1000}
WARM, TIMED = 10, 40  # steps before and while it is timed; compiling is among the first


class Result(NamedTuple):
    """Images a second and bytes."""

    rate: float
    memory: int


class Clock(Silent):
    """Notes when every step's work was done, at the logging that reads the device."""

    def __init__(self) -> None:
        self.at: list[tuple[int, float]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note the time."""
        self.at.append((step, time.perf_counter()))


def described(
    profile: str, device: torch.device, folder: Path, **changes: Any
) -> tuple[TrainPlan, ImageStore]:
    """The profile's training of a few steps, on random images."""
    config = load(ROOT / f"profiles/{profile}.yaml")
    size, classes = config.data.image_size or {"cifar10": 32, "imagenet64": 64}[profile], CLASSES[profile]
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8192, size, size, 3), dtype=np.uint8)
    labels = draw.integers(0, classes, len(images)) if classes else None
    names = [str(number) for number in range(classes)]
    counts = np.bincount(labels, minlength=classes).tolist() if classes else []
    meta = {"name": profile, "classes": names, "counts": counts, "image_size": size, "channels": 3}
    store = write_store(folder / profile, images, labels, meta)
    plan = plan_training(config, store.meta, device)
    steps = {"batch_size": BATCHES[profile], "microbatch": None, "steps": WARM + TIMED, "log_every": 10}
    values = {**plan.train.model_dump(), **steps, "compile": True, **changes}
    return plan.model_copy(update={"train": type(plan.train)(**values)}), store


def ours(plan: TrainPlan, store: ImageStore, device: torch.device) -> Result:
    """`diffusion.train.loop.train` as `diffctl stage train` calls it, without saves and previews."""
    clock = Clock()
    with peak(device) as memory:
        state = new_state(plan, device)
        train(state, store, ProcessGroup(device), clock, lambda state: None, lambda: None)
    after = [(step, at) for step, at in clock.at if step >= WARM]
    windows = [(step - before) / (at - since) for (before, since), (step, at) in itertools.pairwise(after)]
    return Result(statistics.median(windows) * plan.train.batch_size, memory())


def diffusers(plan: TrainPlan, store: ImageStore, device: torch.device) -> Result:
    """The loop of diffusers' training example: autocast, AdamW, clipping, EMA, reading the loss each step."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from diffusion.interop.diffusers import unet_config

    config, count = plan.train, plan.train.batch_size
    # It lacks a scale of time, which costs nothing, and one number of heads for all widths: 64 channels each
    # cost the same.
    same = {"time_scale": 1.0, "heads": None, "head_channels": 64}
    spec = plan.network.model_copy(update=same)
    with peak(device) as memory:
        network = UNet2DModel(**unet_config(UNet(spec))).to(device).train()
        average = EMAModel(network.parameters(), decay=config.ema_decay, use_ema_warmup=True)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
        scheduler = DDPMScheduler(plan.process.timesteps)
        loader = torch.utils.data.DataLoader(Images(store), count, shuffle=True, drop_last=True)
        ended: list[float] = []
        while len(ended) < config.steps:
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                noise = torch.randn_like(images)
                t = torch.randint(0, plan.process.timesteps, (count,), device=device)
                noised = scheduler.add_noise(images, noise, t)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    output = network(noised, t, labels if plan.network.num_classes else None).sample
                loss = F.mse_loss(output[:, : images.shape[1]].float(), noise)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip or math.inf)
                optimizer.step()
                optimizer.zero_grad()
                average.step(network.parameters())
                loss.item()
                ended.append(time.perf_counter())
                if len(ended) == config.steps:
                    break
        times = [b - a for a, b in itertools.pairwise(ended[WARM:])]
    return Result(count / statistics.median(times), memory())


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A store's images in [−1, 1], one at a time, as the example's transforms give them."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(np.array(self._store.images[row])).permute(2, 0, 1)
        label = 0 if self._store.labels is None else int(self._store.labels[row])
        return image.float() / 127.5 - 1, torch.tensor(label)


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """The most bytes that the block holds on the device; 0 on a CPU."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) if cuda else 0


def image_flop(plan: TrainPlan) -> int:
    """Floating-point operations of one image's training step: forward and backward of the network."""
    spec = plan.network
    network = UNet(spec).to("meta")
    x = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size, device="meta")
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x, t, t if spec.num_classes else None).sum().backward()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a bf16 matrix product, the best of several runs: what there is to reach."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ a
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * size**3 / best


def main() -> None:
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return
    device = torch.device("cuda", 0)
    rate = matrix_rate(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {rate / 1e12:.0f} bf16 TFLOP/s")
    print("| profile | loop | images/s | share of the rate | peak memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for profile in BATCHES:
            plan, store = described(profile, device, Path(name))
            for contender in (ours, diffusers):
                found = contender(plan, store, device)
                share = found.rate * image_flop(plan) / rate
                what = f"{profile}, {plan.train.batch_size} a step | {contender.__name__}"
                figures = f"{found.rate:,.0f} | {share:.0%} | {found.memory / 1e9:.1f} GB"
                print(f"| {what} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
