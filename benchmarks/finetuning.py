"""What a start is worth: `python -m benchmarks.finetuning [steps]`.

Fashion-MNIST's profile is trained for some steps. From that model go on two trainings, each beside one of the
same network and settings from scratch: five of its classes, and digits at 32 pixels. The loss of the average
over held-out images, at fixed times and noises, is told over the steps, and after how many of them the start
has reached what the training from scratch ends with.

| what | promise |
| --- | --- |
| steps after which a start is as good as the whole training from scratch | at most a fifth |
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.config import Config, load
from diffusion.data.config import DataConfig
from diffusion.data.prepare import prepare
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore, open_store, write_store
from diffusion.model.model_file import save_artefact
from diffusion.process.condition import Condition
from diffusion.process.losses import training_losses
from diffusion.process.registry import build_process
from diffusion.train.config import StartConfig
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import DenoiserPlan, plan_training, result_of
from diffusion.train.loop import Silent, TrainState, new_state, train
from diffusion.train.start import keep_start

CPU = torch.device("cpu")
PROFILE = Path(__file__).parent.parent / "profiles" / "fashion-mnist.yaml"
STEPS, FIRST_STEPS = 1000, 2000  # of each of the four trainings, and of the one that is started from
POINTS = 20  # at which losses are looked at
HELD_OUT = 256
CLASSES = 5


class HeldOutLoss:
    """Keeps the losses of a network over held-out images, each at a time and with a noise of its own."""

    def __init__(self, plan: DenoiserPlan, test: ImageStore) -> None:
        source = torch.Generator().manual_seed(0)
        self.process = build_process(plan.process)
        self.x_0 = to_model(to_nchw(np.asarray(test.images[:HELD_OUT])))
        assert test.labels is not None, "both sets have labels"
        self.condition = Condition(len(self.x_0), torch.from_numpy(test.labels[:HELD_OUT]))
        self.t = torch.arange(len(self.x_0)) * plan.process.timesteps // len(self.x_0)
        self.noise = torch.randn(self.x_0.shape, generator=source)
        self.seen: dict[int, float] = {}

    @torch.no_grad()
    def look(self, step: int, network: torch.nn.Module) -> None:
        """Note the loss of this network."""
        losses = training_losses(network, self.process, self.x_0, self.t, self.noise, self.condition)
        self.seen[step] = float(losses["loss"].mean())


def trained(
    plan: DenoiserPlan, store: ImageStore, test: ImageStore, starts: Path
) -> tuple[TrainState, dict[int, float]]:
    """The plan's training, and its held-out loss by step, that before the first one included."""
    state = new_state(plan, CPU, starts)
    every = max(1, plan.train.steps // POINTS)
    held_out = HeldOutLoss(plan, test)
    held_out.look(0, state.ema)

    def look() -> None:
        if state.step and state.step % every == 0:
            held_out.look(state.step, state.ema)

    train(state, store, ProcessGroup(CPU), Silent(), lambda state: None, look)
    held_out.look(state.step, state.ema)
    return state, held_out.seen


def planned(config: Config, store: ImageStore, steps: int, starts: Path, start: str | None) -> DenoiserPlan:
    """The profile's training on these images, `steps` long, from the start."""
    pinned = None if start is None else StartConfig(sha256=start)
    course = config.train.lr.model_copy(update={"warmup": min(config.train.lr.warmup, steps // 10)})
    section = config.train.model_copy(update={"steps": steps, "lr": course, "start": pinned})
    return plan_training(config.model_copy(update={"train": section}), store.meta, CPU, starts)


def few_classes(store: ImageStore, folder: Path) -> ImageStore:
    """The images of the first classes alone."""
    assert store.labels is not None, "Fashion-MNIST has labels"
    rows = np.flatnonzero(store.labels < CLASSES)
    labels = store.labels[rows]
    meta: dict[str, Any] = {key: value for key, value in store.meta.items() if key not in ("count", "digest")}
    meta |= {
        "classes": store.meta["classes"][:CLASSES],
        "counts": np.bincount(labels, minlength=CLASSES).tolist(),
    }
    return write_store(folder, np.asarray(store.images)[rows], labels, meta)


def compared(
    name: str, config: Config, stores: list[ImageStore], steps: int, starts: Path, start: str
) -> None:
    """Train on the stores (train, test) with and without the start, and print what it was worth."""
    losses = {}
    for pinned in (None, start):
        plan = planned(config, stores[0], steps, starts, pinned)
        losses[pinned] = trained(plan, stores[0], stores[1], starts)[1]
    scratch, started = losses[None], losses[start]
    reached = next((step for step, loss in started.items() if loss <= scratch[steps]), None)
    told = "not reached" if reached is None else f"reached after {reached} ({reached / steps:.0%})"
    print(f"{name}: {steps} steps from scratch end at {scratch[steps]:.4f}, {told}")
    for step in scratch:
        print(f"  {step:>7,}  scratch {scratch[step]:.4f}  started {started[step]:.4f}", flush=True)


def main(steps: int = STEPS, first_steps: int = FIRST_STEPS) -> None:
    """Train the start, then both pairs."""
    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), load(PROFILE)
        starts = folder / "start"
        prepare(config.data, folder / "clothes")
        clothes = [open_store(folder / "clothes" / split) for split in ("train", "test")]
        state, _ = trained(planned(config, clothes[0], first_steps, starts, None), *clothes, starts)
        path = folder / "first.safetensors"
        save_artefact(path, state.ema.state_dict(), result_of(state.plan))
        start = keep_start(path, starts)[1].model_sha256
        some = [few_classes(store, folder / f"few-{store.meta['split']}") for store in clothes]
        compared("five classes", config, some, steps, starts, start)
        prepare(DataConfig(name="digits", image_size=32), folder / "digits")
        digits = [open_store(folder / "digits" / split) for split in ("train", "test")]
        larger = config.model.model_copy(update={"attention": (8,)})  # at the level where 28 pixels have 7
        compared("digits at 32", config.model_copy(update={"model": larger}), digits, steps, starts, start)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
