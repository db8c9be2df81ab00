"""Quality for the time given: `python -m benchmarks.quality [seconds]`, with the `interop` extra installed.

Fashion-MNIST, 240 s of training from scratch by the profile's own network and settings, its rate's course
fitted to the steps that the time allows; then 2,000 images at 50 DDIM steps, their Fréchet distance to the
test split (fd_effnet_lite0_64). In the same run, diffusers' UNet2DModel of the same shape, as it comes:
float32, AdamW at 1e-3, batch 64, EMA 0.995, DDPMScheduler's defaults.

| what | promise on 2 CPU cores |
| --- | --- |
| our distance | at most half of diffusers' |
| parameters | at most 1.5 million |
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from diffusion.config import load
from diffusion.data.prepare import prepare
from diffusion.evaluate.features.extract import extract
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.scores.scores import frechet_distance, statistics
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, ImageStore, open_store
from diffusion.interop.diffusers import unet_config
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.asked import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import TrainPlan, plan_training
from diffusion.train.loop import Silent, TrainState, new_state, train

CPU = torch.device("cpu")
PROFILE = Path(__file__).parent.parent / "profiles" / "fashion-mnist.yaml"
SECONDS, IMAGES, STEPS, BATCH = 240, 2000, 50, 250
TRIAL_STEPS = 30


def trained(plan: TrainPlan, store: ImageStore, steps: int) -> tuple[TrainState, float]:
    """A training of `steps` steps, and its seconds."""
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"steps": steps})})
    state = new_state(plan, CPU)
    began = time.perf_counter()
    train(state, store, ProcessGroup(CPU), Silent(), lambda state: None, lambda: None)
    return state, time.perf_counter() - began


def ours(store: ImageStore, seconds: float) -> tuple[Images, str]:
    """Images of the profile's own training of about `seconds`, and what it was."""
    plan = plan_training(load(PROFILE), store.meta, CPU)
    steps = int(seconds * TRIAL_STEPS / trained(plan, store, TRIAL_STEPS)[1])
    state, took = trained(plan, store, steps)
    settings, model = SampleSettings(steps=STEPS), LoadedModel(state.ema, plan)
    images = np.concatenate(
        [
            to_nhwc(generate(model, settings, part, mixed_condition(plan, settings, part), CPU))
            for part in (range(start, min(start + BATCH, IMAGES)) for start in range(0, IMAGES, BATCH))
        ]
    )
    count = sum(parameter.numel() for parameter in state.network.parameters())
    return images, f"{count:,} parameters, {steps} steps of batch {plan.train.batch_size}, {took:.0f} s"


def theirs(store: ImageStore, seconds: float) -> tuple[Images, str]:
    """Images of diffusers' training of `seconds`, and what it was."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    config = load(PROFILE)
    simple = config.process.model_copy(update={"variance": "small", "loss": "simple", "prediction": "eps"})
    plan = plan_training(config.model_copy(update={"process": simple}), store.meta, CPU)
    torch.manual_seed(0)
    network = UNet2DModel(**unet_config(new_state(plan, CPU).network))
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ema = EMAModel(network.parameters(), decay=0.995)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        rows = torch.randint(len(store), (64,)).numpy()
        x_0 = to_model(to_nchw(store.images[rows]))
        noise, t = torch.randn_like(x_0), torch.randint(1000, (64,))
        noisy = scheduler.add_noise(x_0, noise, t)  # type: ignore[arg-type]
        output = network(noisy, t, class_labels=torch.from_numpy(store.labels[rows])).sample
        torch.nn.functional.mse_loss(output, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        steps += 1
    took = time.perf_counter() - began
    ema.copy_to(network.parameters())
    count = sum(parameter.numel() for parameter in network.parameters())
    return their_images(network), f"{count:,} parameters, {steps} steps of batch 64, {took:.0f} s"


@torch.no_grad()
def their_images(network: torch.nn.Module) -> Images:
    """The images of DDIMScheduler's defaults."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    parts = []
    for start in range(0, IMAGES, BATCH):
        labels = torch.arange(start, min(start + BATCH, IMAGES)) % 10
        x = torch.randn(len(labels), 1, 28, 28)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)), class_labels=labels).sample
            x = scheduler.step(output, t, x).prev_sample
        parts.append(to_nhwc(to_uint8(x)))
    return np.concatenate(parts)


def main(seconds: float = SECONDS) -> None:
    """Train both, score both, print a table."""
    with tempfile.TemporaryDirectory() as name:
        prepare(load(PROFILE).data, Path(name))
        store, test = open_store(Path(name) / "train"), open_store(Path(name) / "test")
        extractor = load_extractor("effnet-lite0-64")
        reference = statistics(extract(extractor, test.images).features)
        real = np.asarray(store.images[:IMAGES])
        makers = {"ours": ours, "diffusers": theirs, "real": lambda store, seconds: (real, "training images")}
        for what, make in makers.items():
            images, how = make(store, seconds)
            distance = frechet_distance(statistics(extract(extractor, images).features), reference)
            print(f"{what:<10} fd_effnet_lite0_64 {distance:8.1f}   {how}", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
