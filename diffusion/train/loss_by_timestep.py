"""The loss by timestep quartile: where on the way from image to noise a training still learns.

Sums and counts travel through a window of steps, so that each quartile's mean is over all of its images,
however many a step drew; iDDPM logs the same (2102.09672, its reference code).
"""

import torch
from torch import Tensor

QUARTILES = 4
NAMES = tuple(f"loss_q{quartile}" for quartile in range(QUARTILES))
SUM, COUNT = ".sum", ".count"


def quartile_sums(losses: Tensor, index: Tensor, timesteps: int) -> dict[str, Tensor]:
    """Per-image losses (B,) at timesteps `index` (B,) in [0, T) as sum and count of each quarter of T."""
    quartile = index.to(losses.device) * QUARTILES // timesteps
    inside = (quartile[:, None] == torch.arange(QUARTILES, device=losses.device)).to(losses.dtype)
    sums = {f"{name}{SUM}": value for name, value in zip(NAMES, losses @ inside, strict=True)}
    return sums | {f"{name}{COUNT}": value for name, value in zip(NAMES, inside.sum(0), strict=True)}


def with_quartile_means(totals: dict[str, float]) -> dict[str, float]:
    """Sums and counts replaced by each quartile's mean; a quartile without an image is left out."""
    values = {name: value for name, value in totals.items() if not name.endswith((SUM, COUNT))}
    for name in NAMES:
        if totals.get(f"{name}{COUNT}"):
            values[name] = totals[f"{name}{SUM}"] / totals[f"{name}{COUNT}"]
    return values
