"""diffusers' trainings in the speedrun: its example as it ships, and with the care of this project's entries.

A search chooses batch, rate and average: first all in a quarter of the time, then the best in all of it.
The network has the shape of the entry that they are after, and sees labels. Images are made by DDIMScheduler.
"""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders import unet2d
from benchmarks.diffusers_recipes import DECAYS, RECIPES, Recipe
from benchmarks.quality import BATCH, OutOfTime, Size, Stopwatch
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, ImageStore
from diffusion.model.unet_config import UNetSpec
from diffusion.system.files import write_json
from diffusion.train.plan import TrainPlan

SEARCH_SEED = 1000  # of the trainings and the samples by which the options are chosen
SHORT, FINALISTS = 4, 3  # the first round takes a quarter of the time, and its best three are in the second


class Outcome(NamedTuple):
    """A finished training: a network for each average of the weights, by its decay."""

    averages: dict[float, nn.Module]
    steps: int
    seconds: float


def train(
    recipe: Recipe, plan: TrainPlan, store: ImageStore, seconds: float, device: torch.device, seed: int
) -> Outcome:
    """Train diffusers' network of the plan's shape for so many seconds, with its building."""
    from diffusers.training_utils import EMAModel

    spec = plan.network
    assert isinstance(spec, UNetSpec), "UNet2DModel is a U-Net"
    # Imports do not count, so what imports parts of diffusers comes before.
    scheduler = recipe.scheduler("DDPMScheduler")
    averages = {decay: unet2d(spec, recipe.norm_groups).to(device) for decay in recipe.decays}
    watch = Stopwatch(seconds)
    torch.manual_seed(seed)
    network = unet2d(spec, recipe.norm_groups).to(device)
    options = {"betas": recipe.betas, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, **options)  # type: ignore[arg-type]
    warm = {} if recipe.ema_power is None else {"use_ema_warmup": True, "power": recipe.ema_power}
    emas = {
        decay: EMAModel(network.parameters(), decay=decay, foreach=True, **warm) for decay in recipe.decays
    }
    network.train()
    with suppress(OutOfTime):
        while True:
            watch.check()
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(watch.steps - 1, watch.share())
            images, labels = _batch(store, recipe.batch, device)
            loss = denoising_loss(recipe, network, scheduler, images, labels, plan)
            update(network, optimizer, emas, loss)
    took = watch.elapsed()
    for decay, ema in emas.items():
        ema.copy_to(averages[decay].parameters())
    return Outcome(averages, watch.steps, took)


def _batch(store: ImageStore, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(store), (size,)).numpy()
    assert store.labels is not None, "Fashion-MNIST and the digits have labels"
    return to_model(to_nchw(store.images[rows])).to(device), torch.from_numpy(store.labels[rows]).to(device)


def denoising_loss(
    recipe: Recipe, network: nn.Module, scheduler: Any, images: Tensor, labels: Tensor, plan: TrainPlan
) -> Tensor:
    """Return the mean squared error of what the network predicts at random timesteps."""
    noise, t = torch.randn_like(images), torch.randint(1000, (len(images),), device=images.device)
    noisy, is_velocity = scheduler.add_noise(images, noise, t), recipe.prediction == "v_prediction"
    target = scheduler.get_velocity(images, noise, t) if is_velocity else noise
    with recipe.autocast(images.device, plan.precision):
        output = network(noisy, t, labels).sample
    return F.mse_loss(output[:, : images.shape[1]].float(), target)


def update(
    network: nn.Module, optimizer: torch.optim.Optimizer, emas: dict[float, Any], loss: Tensor
) -> None:
    """Make a step of the optimiser by a loss, and of the averages, diffusers' EMAModels by their decay."""
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    for ema in emas.values():
        ema.step(network.parameters())


class Run(NamedTuple):
    """What the trainings of an entry have in common."""

    plan: TrainPlan
    store: ImageStore
    size: Size
    device: torch.device

    def train(self, recipe: Recipe, seed: int, share: float = 1.0) -> Outcome:
        """Train by a recipe for a share of the time."""
        assert self.size.seconds is not None, "a training takes a time"
        return train(recipe, self.plan, self.store, self.size.seconds * share, self.device, seed)

    @torch.no_grad()
    def images(self, recipe: Recipe, network: nn.Module, count: int, seed: int) -> Images:
        """Return so many images in `size.steps` steps of DDIM, ten classes in equal numbers."""
        scheduler = recipe.scheduler("DDIMScheduler", timestep_spacing=recipe.spacing)
        scheduler.set_timesteps(self.size.steps)
        draw, shape = torch.Generator().manual_seed(seed), to_nchw(self.store.images[:1]).shape[1:]
        network.eval()
        parts = []
        for start in range(0, count, BATCH):
            labels = torch.arange(start, min(start + BATCH, count), device=self.device) % 10
            x = torch.randn(len(labels), *shape, generator=draw).to(self.device)
            for t in scheduler.timesteps:
                with recipe.autocast(self.device, self.plan.precision):
                    output = network(x, t.expand(len(x)).to(self.device), class_labels=labels).sample
                x = scheduler.step(output[:, : x.shape[1]].float(), t, x).prev_sample
            parts.append(to_nhwc(to_uint8(x).cpu()))
        return np.concatenate(parts)


def run(name: str, started: Run, judges: Any, folder: Path, kept: Path) -> dict[str, Any]:
    """Choose the recipe's options if it has any, train, sample and score; return the result.

    The reported images are in the file `kept`.
    """
    recipe, plan, size = RECIPES[name], started.plan, started.size
    seed = plan.train.seed
    recipe, tried = choose(recipe, started, judges.choice, folder / f"search/{name}")
    trained = started.train(recipe, seed)
    (network,) = trained.averages.values()
    build = started.images(recipe, network, size.images // 4, SEARCH_SEED + seed)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": trained.steps,
        "batch": recipe.batch,
        "seconds": round(trained.seconds, 2),
        "average": f"decay {recipe.decays[0]:g}",
        "nfe": size.steps,
        "sample": {"spacing": recipe.spacing, "seed": seed, "batch": recipe.batch, "rate": recipe.rate},
        "tried": [
            {
                "change": {"batch": one["batch"], "rate": one["rate"]},
                "seconds": one["seconds"],
                "fd": one["fd"],
            }
            for one in tried
        ],
        "search": {"trainings": len(tried), "seconds": round(sum(one["seconds"] for one in tried), 1)},
        "precision": plan.precision if recipe.bf16 else "fp32",
        "fd_build": round(judges.build(build), 1),
        **judges.report_on(started.images(recipe, network, size.images, seed), kept),
    }


def choose(recipe: Recipe, started: Run, judge: Any, folder: Path) -> tuple[Recipe, list[dict[str, Any]]]:
    """Return the recipe with the best batch, rate and average, and what was tried.

    All batches and rates have short trainings, the best of them whole ones, which also choose the average.
    """
    images = started.size.images
    found = [
        (_tried(one, started, 1 / SHORT, images // 8, judge, folder), one) for one in recipe.candidates()
    ]
    if not found:
        return recipe, []
    first = sorted(found, key=lambda pair: min(pair[0]["fd"].values()))
    finalists = [replace(one, decays=DECAYS) for _, one in first[:FINALISTS]]
    second = [(_tried(one, started, 1.0, images // 4, judge, folder), one) for one in finalists]
    best, chosen = min(second, key=lambda pair: min(pair[0]["fd"].values()))
    decay = float(min(best["fd"], key=best["fd"].__getitem__))
    return replace(chosen, decays=(decay,)), [tried for tried, _ in found + second]


def _tried(
    recipe: Recipe, started: Run, share: float, count: int, judge: Any, folder: Path
) -> dict[str, Any]:
    """Return the distance of each average of a training of the search, which is stored in the folder."""
    path = folder / f"{recipe.batch}-{recipe.rate:g}-{share:g}-{started.size.seconds:g}s-{count}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    trained = started.train(recipe, SEARCH_SEED, share)
    distances = {
        f"{decay:g}": round(judge(started.images(recipe, network, count, SEARCH_SEED)), 1)
        for decay, network in trained.averages.items()
    }
    found = {"batch": recipe.batch, "rate": recipe.rate, "steps": trained.steps, "fd": distances}
    found["seconds"] = round(trained.seconds, 2)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(
        f"    batch {recipe.batch}, rate {recipe.rate:g}, {found['seconds']:.0f} s: {distances}", flush=True
    )
    return found
