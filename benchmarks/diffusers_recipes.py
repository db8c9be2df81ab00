"""How diffusers trains and samples in the speedrun: its example's options, and tuned ones."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

DECAYS = (0.99, 0.995, 0.999)  # of a whole training in a search; a short one has the first alone


@dataclass(frozen=True)
class Recipe:
    """How diffusers trains and samples.

    The rate rises over `warmup` steps. With `cosine` it then falls with the elapsed share of the time.
    `decays` are those of the tracked averages; `ema_power` is that of EMAModel's warm-up, None without one.
    `norm_groups` is the number of groups in each norm but the middle attention's, None for that of the
    network's shape. `searched` are batches and rates to choose from.
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
    norm_groups: int | None = None
    searched: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())

    def rate_at(self, step: int, share: float) -> float:
        """Return the rate of a step at an elapsed share of the time."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.rate * rising * ((1 + math.cos(math.pi * share)) / 2 if self.cosine else 1.0)

    def candidates(self) -> Iterator["Recipe"]:
        """Yield the recipe of each training of the search's first round."""
        for batch, rate in product(*self.searched):
            yield replace(self, batch=batch, rate=rate, decays=DECAYS[:1])

    def autocast(self, device: torch.device, precision: str) -> torch.autocast:
        """Return the context of a forward pass: in bf16 if the recipe has it and `precision` is bf16."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16 and precision == "bf16")

    def scheduler(self, kind: str, **options: Any) -> Any:
        """Return diffusers' scheduler of a class name."""
        import diffusers

        return getattr(diffusers, kind)(
            beta_schedule=self.schedule, prediction_type=self.prediction, **options
        )


TUNED = Recipe(
    warmup=100,
    cosine=True,
    prediction="v_prediction",
    schedule="squaredcos_cap_v2",
    spacing="trailing",
    bf16=True,
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
    "diffusers-tuned": replace(TUNED, searched=((16, 32, 64), (5e-4, 1e-3, 2e-3, 4e-3))),
    "diffusers-groups": replace(
        TUNED, batch=32, rate=4e-3, decays=(0.99,), norm_groups=4
    ),  # with that search's choice
}
