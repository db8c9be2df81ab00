"""diffusers on the images of a project, by steps: `python -m benchmarks.cifar10 --rate 0.002 --steps N`.

UNet2DModel has the shape of the project's U-Net. It is trained as the speedrun's `diffusers-groups`, with
mirrored images. Ctrl-C loses at most SAVE_EVERY steps, and the same command resumes. Run it in a project for
CIFAR-10, after `diffctl stage data`. Each tenth of the steps leaves the averages of the weights and prints
their loss on test images. `--sample AT` makes images with those of a step, for `diffctl evaluate --against`;
`--guide` adds autoguidance by the average of an earlier step.
Another number of steps, rate or batch has a folder of its own in runs/diffusers.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contenders import CPU, unet2d
from benchmarks.diffusers_entry import Run, denoising_loss, update
from benchmarks.diffusers_recipes import DECAYS, RECIPES, Recipe
from benchmarks.quality import Size
from diffusion.config import load
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore, open_store
from diffusion.layout import PARAMS, PREPARED
from diffusion.model.unet_config import UNetSpec
from diffusion.system.files import write_atomic
from diffusion.train.plan import TrainPlan, plan_training

SAVE_EVERY, PARTS = 200, 10
TESTED = 1_000  # images of the test split


class Training:
    """A training of diffusers' network that saves its whole state."""

    def __init__(self, recipe: Recipe, plan: TrainPlan, store: ImageStore, steps: int) -> None:
        from diffusers.training_utils import EMAModel

        assert isinstance(plan.network, UNetSpec), "UNet2DModel is a U-Net"
        self.recipe, self.plan, self.store, self.steps = recipe, plan, store, steps
        self.step, self.seconds, self.loss = 0, 0.0, 0.0
        self.folder = Path(f"runs/diffusers/{steps}-{recipe.batch}-{recipe.rate:g}")
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(plan.train.seed)
        # 32 groups in the norm of the attention in the middle, as always in diffusers
        shape = plan.network.model_copy(update={"group_channels": 1})
        self.network = unet2d(shape, recipe.norm_groups)
        betas, decay = recipe.betas, recipe.weight_decay
        self.optimizer = torch.optim.AdamW(self.network.parameters(), recipe.rate, betas, weight_decay=decay)
        self.emas = {
            decay: EMAModel(self.network.parameters(), decay=decay, foreach=True) for decay in recipe.decays
        }
        self.scheduler = recipe.scheduler("DDPMScheduler")

    def run(self) -> None:
        """Train to the end, and save the state now and then."""
        self.network.train()
        while self.step < self.steps:
            began = time.perf_counter()
            self._advance()
            self.seconds += time.perf_counter() - began
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                self._save()
                print(
                    f"step {self.step}/{self.steps}, {self.seconds:.0f} s, loss {self.loss:.4f}", flush=True
                )

    def _advance(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.step, self.step / self.steps)
        images, labels = mirrored(self.store, self.recipe.batch)
        loss = denoising_loss(self.recipe, self.network, self.scheduler, images, labels, self.plan)
        update(self.network, self.optimizer, self.emas, loss)
        self.loss = loss.item()

    def _save(self) -> None:
        emas = {decay: ema.state_dict() for decay, ema in self.emas.items()}
        marks = {round(self.steps * part / PARTS / SAVE_EVERY) * SAVE_EVERY for part in range(1, PARTS)}
        if self.step in marks | {self.steps}:
            print(f"loss of the averages on test images: {self.test_losses()}", flush=True)
            write_atomic(self.averages(self.step), lambda path: torch.save(emas, path))
        state = {"step": self.step, "seconds": self.seconds, "network": self.network.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "emas": emas, "rng": torch.get_rng_state()}
        write_atomic(self.folder / "state.pt", lambda path: torch.save(state, path))

    @torch.no_grad()
    def test_losses(self) -> dict[float, float]:
        """Return the loss of each average on test images, by its decay. The noise is always the same."""
        store, losses = open_store(PREPARED / "test"), {}
        assert store.labels is not None, "CIFAR-10 has labels"
        images = to_model(to_nchw(store.images[:TESTED]))
        labels = torch.from_numpy(store.labels[:TESTED])
        self.network.eval()
        for decay, ema in self.emas.items():
            ema.store(self.network.parameters())
            ema.copy_to(self.network.parameters())
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                parts = [
                    denoising_loss(self.recipe, self.network, self.scheduler, some, of, self.plan)
                    for some, of in zip(images.split(250), labels.split(250), strict=True)
                ]
            losses[decay] = round(torch.stack(parts).mean().item(), 4)
            ema.restore(self.network.parameters())
        self.network.train()
        return losses

    def averages(self, step: int) -> Path:
        """Return the file with the averages of a step."""
        return self.folder / f"averages-{step}.pt"

    def average(self, step: int, decay: float) -> nn.Module:
        """Return a network with the average of a step."""
        ema, network = self.emas[decay], copy.deepcopy(self.network)
        ema.load_state_dict(torch.load(self.averages(step), weights_only=False)[decay])
        ema.copy_to(network.parameters())
        return network

    def resume(self) -> None:
        """Continue with the saved state, if there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=False)
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for decay, saved in state["emas"].items():
            self.emas[decay].load_state_dict(saved)
        torch.set_rng_state(state["rng"])


def mirrored(store: ImageStore, size: int) -> tuple[Tensor, Tensor]:
    """Return random images, half of them mirrored, and their labels."""
    assert store.labels is not None, "CIFAR-10 has labels"
    rows = torch.randint(len(store), (size,)).numpy()
    images = to_model(to_nchw(store.images[rows]))
    images = torch.where(torch.rand(size, 1, 1, 1) < 0.5, images.flip(3), images)
    return images, torch.from_numpy(store.labels[rows])


class Prediction(NamedTuple):
    """The output of a network, named as diffusers names it."""

    sample: Tensor


class Autoguidance(nn.Module):
    """A network guided by a worse one (2406.02507): v + w (v - v'). For x_0 this is the same."""

    def __init__(self, network: nn.Module, guide: nn.Module, weight: float) -> None:
        super().__init__()
        self.network, self.guide, self.weight = network, guide, weight

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Prediction:
        """Return the guided prediction in float32."""
        better = self.network(x, t, class_labels).sample.float()
        worse = self.guide(x, t, class_labels).sample.float()
        return Prediction(better + self.weight * (better - worse))


def sample(training: Training, given: argparse.Namespace) -> Path:
    """Make images with the average of a step; return the NPZ file."""
    network: nn.Module = training.average(given.sample, given.decay)
    name = f"{given.sample}-{given.decay:g}-{given.sampling_steps}-{given.seed}-{given.images}"
    if given.guide is not None:
        network = Autoguidance(network, training.average(given.guide, given.decay), given.guidance)
        name += f"-{given.guidance:g}-{given.guide}"
    run = Run(training.plan, training.store, Size(None, given.images, given.sampling_steps), CPU)
    path = training.folder / f"{name}.npz"
    np.savez(path, run.images(training.recipe, network, given.images, given.seed))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar10", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, required=True, help="of the training")
    parser.add_argument("--rate", type=float, required=True, help="the highest learning rate")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sample", type=int, metavar="AT", help="make images with the averages of this step")
    parser.add_argument("--decay", type=float, default=DECAYS[-1], choices=DECAYS, help="of the average")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--sampling-steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--guide", type=int, metavar="AT", help="autoguidance by the average of this step")
    parser.add_argument("--guidance", type=float, default=1.0, help="the weight of the guide")
    arguments = parser.parse_args()
    store = open_store(PREPARED / "train")
    plan = plan_training(load(PARAMS), store.meta, CPU)
    groups = RECIPES["diffusers-groups"]
    recipe = replace(groups, batch=arguments.batch, rate=arguments.rate, decays=DECAYS)
    training = Training(recipe, plan, store, arguments.steps)
    if arguments.sample is None:
        training.resume()
        print(f"step {training.step} of {arguments.steps}", flush=True)
        training.run()
    else:
        print(sample(training, arguments))


if __name__ == "__main__":
    main()
