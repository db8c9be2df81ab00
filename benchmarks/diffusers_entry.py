"""diffusers' trainings in the speedrun: its example as it ships, and with the care of this project's entries.

The network has the shape of the entry that they are after, and sees labels. Images are made by DDIMScheduler.
"""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders import unet2d
from benchmarks.quality import BATCH, OutOfTime, Size, Stopwatch
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, ImageStore
from diffusion.model.unet_config import UNetSpec
from diffusion.system.files import write_json
from diffusion.train.plan import TrainPlan

SEARCH_SEED = 1000  # of the trainings and the samples by which the options are chosen
SEARCH_DECAYS = (0.99, 0.995, 0.999)  # tracked in each training of the search, the chosen one alone later


@dataclass(frozen=True)
class Recipe:
    """How diffusers trains and samples.

    The rate rises over `warmup` steps. With `cosine` it then falls with the elapsed share of the time.
    `decays` are those of the tracked averages; `ema_power` is that of EMAModel's warm-up, None without one.
    `searched` are batches and rates to choose from.
    """

    batch: int = 64
    rate: float = 1e-3
    warmup: int = 0
    cosine: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decays: tuple[float, ...] = (0.995,)
    ema_power: float | None = None
    prediction: str = "epsilon"
    schedule: str = "linear"
    spacing: str = "leading"
    bf16: bool = False
    searched: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())

    def rate_at(self, step: int, share: float) -> float:
        """Return the rate of a step at an elapsed share of the time."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.rate * rising * ((1 + math.cos(math.pi * share)) / 2 if self.cosine else 1.0)

    def candidates(self) -> Iterator["Recipe"]:
        """Yield the recipe of each training of the search."""
        for batch, rate in product(*self.searched):
            yield replace(self, batch=batch, rate=rate, decays=SEARCH_DECAYS)

    def scheduler(self, kind: str, **options: Any) -> Any:
        """Return diffusers' scheduler of a class name."""
        import diffusers

        return getattr(diffusers, kind)(
            beta_schedule=self.schedule, prediction_type=self.prediction, **options
        )


RECIPES = {
    "diffusers": Recipe(),
    # train_unconditional.py with its defaults: the cosine's length is that of the training.
    "diffusers-example": Recipe(
        batch=16,
        rate=1e-4,
        warmup=500,
        cosine=True,
        betas=(0.95, 0.999),
        weight_decay=1e-6,
        decays=(0.9999,),
        ema_power=0.75,
    ),
    "diffusers-tuned": Recipe(
        warmup=100,
        cosine=True,
        prediction="v_prediction",
        schedule="squaredcos_cap_v2",
        spacing="trailing",
        bf16=True,
        searched=((16, 32, 64), (5e-4, 1e-3, 2e-3, 4e-3)),
    ),
}


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
    averages = {decay: unet2d(spec).to(device) for decay in recipe.decays}
    watch = Stopwatch(seconds)
    torch.manual_seed(seed)
    network = unet2d(spec).to(device)
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
            _loss(recipe, network, scheduler, *_batch(store, recipe.batch, device), plan).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            for ema in emas.values():
                ema.step(network.parameters())
    took = watch.elapsed()
    for decay, ema in emas.items():
        ema.copy_to(averages[decay].parameters())
    return Outcome(averages, watch.steps, took)


def _batch(store: ImageStore, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(store), (size,)).numpy()
    assert store.labels is not None, "Fashion-MNIST and the digits have labels"
    return to_model(to_nchw(store.images[rows])).to(device), torch.from_numpy(store.labels[rows]).to(device)


def _loss(
    recipe: Recipe, network: nn.Module, scheduler: Any, images: Tensor, labels: Tensor, plan: TrainPlan
) -> Tensor:
    """Return the mean squared error of what the network predicts at random timesteps."""
    noise, t = torch.randn_like(images), torch.randint(1000, (len(images),), device=images.device)
    noisy, is_velocity = scheduler.add_noise(images, noise, t), recipe.prediction == "v_prediction"
    target = scheduler.get_velocity(images, noise, t) if is_velocity else noise
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bf16 and plan.precision == "bf16"):
        output = network(noisy, t, labels).sample
    return F.mse_loss(output[:, : images.shape[1]].float(), target)


@torch.no_grad()
def images_of(
    recipe: Recipe, network: nn.Module, store: ImageStore, size: Size, device: torch.device, seed: int
) -> Images:
    """Return `size.images` images in `size.steps` steps of DDIM, ten classes in equal numbers."""
    scheduler = recipe.scheduler("DDIMScheduler", timestep_spacing=recipe.spacing)
    scheduler.set_timesteps(size.steps)
    draw, parts, shape = torch.Generator().manual_seed(seed), [], to_nchw(store.images[:1]).shape[1:]
    network.eval()
    for start in range(0, size.images, BATCH):
        labels = torch.arange(start, min(start + BATCH, size.images), device=device) % 10
        x = torch.randn(len(labels), *shape, generator=draw).to(device)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)).to(device), class_labels=labels).sample
            x = scheduler.step(output[:, : x.shape[1]], t, x).prev_sample
        parts.append(to_nhwc(to_uint8(x).cpu()))
    return np.concatenate(parts)


def run(
    name: str,
    plan: TrainPlan,
    store: ImageStore,
    size: Size,
    device: torch.device,
    judges: Any,
    folder: Path,
    kept: Path,
) -> dict[str, Any]:
    """Choose the recipe's options if it has any, train, sample and score; return the result.

    The reported images are in the file `kept`.
    """
    recipe, seed = RECIPES[name], plan.train.seed
    assert size.seconds is not None, "a training takes a time"
    tried = [
        _tried(one, plan, store, size, device, judges.choice, folder / f"search/{name}")
        for one in recipe.candidates()
    ]
    if tried:
        best = min(tried, key=lambda one: min(one["fd"].values()))
        decay = min(best["fd"], key=best["fd"].__getitem__)
        recipe = replace(recipe, batch=best["batch"], rate=best["rate"], decays=(float(decay),))
    trained = train(recipe, plan, store, size.seconds, device, seed)
    (network,) = trained.averages.values()
    half, other_seed = size._replace(images=size.images // 2), SEARCH_SEED + seed
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": trained.steps,
        "batch": recipe.batch,
        "seconds": round(trained.seconds, 2),
        "average": f"decay {recipe.decays[0]:g}",
        "nfe": size.steps,
        "sample": {"spacing": recipe.spacing, "seed": seed, "batch": recipe.batch, "rate": recipe.rate},
        "tried": [{"change": {"batch": one["batch"], "rate": one["rate"]}, "fd": one["fd"]} for one in tried],
        "search": {"trainings": len(tried), "seconds": round(sum(one["seconds"] for one in tried), 1)},
        "precision": plan.precision if recipe.bf16 else "fp32",
        "fd_build": round(judges.build(images_of(recipe, network, store, half, device, other_seed)), 1),
        **judges.report_on(images_of(recipe, network, store, size, device, seed), kept),
    }


def _tried(
    recipe: Recipe,
    plan: TrainPlan,
    store: ImageStore,
    size: Size,
    device: torch.device,
    judge: Any,
    folder: Path,
) -> dict[str, Any]:
    """Return the distance of each average of a training of the search, which is stored in the folder."""
    assert size.seconds is not None, "a training takes a time"
    path = folder / f"{recipe.batch}-{recipe.rate:g}-{size.seconds:g}s-{size.images}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    trained = train(recipe, plan, store, size.seconds, device, SEARCH_SEED)
    half = size._replace(images=size.images // 2)
    distances = {
        f"{decay:g}": round(judge(images_of(recipe, network, store, half, device, SEARCH_SEED)), 1)
        for decay, network in trained.averages.items()
    }
    found = {"batch": recipe.batch, "rate": recipe.rate, "steps": trained.steps, "fd": distances}
    found["seconds"] = round(trained.seconds, 2)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(f"    batch {recipe.batch}, rate {recipe.rate:g}: {distances}", flush=True)
    return found
