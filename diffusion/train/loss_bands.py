"""The loss by band of the log-SNR: where between image and noise a training still learns.

Sums and counts are added up over a window of steps, so that each band's mean is over all of its images.
"""

import torch
from torch import Tensor

from diffusion.train.train_config import BAND_EDGES, BAND_NAMES

IN_CODE_DIGEST = False  # diffusion/code_digest.py

SUM, COUNT = ".sum", ".count"


def band_sums(losses: Tensor, log_snr: Tensor) -> dict[str, Tensor]:
    """Return sum and count of per-image losses (B,) by band of the log-SNR 2λ; `log_snr` (B,) is λ."""
    log_snr = log_snr.to(losses.device)
    band = torch.stack([2 * log_snr <= edge for edge in BAND_EDGES]).sum(0)
    inside = (band[:, None] == torch.arange(len(BAND_NAMES), device=losses.device)).to(losses.dtype)
    sums = {f"{name}{SUM}": value for name, value in zip(BAND_NAMES, losses @ inside, strict=True)}
    counts = zip(BAND_NAMES, inside.sum(0), strict=True)
    return sums | {f"{name}{COUNT}": value for name, value in counts}


def with_band_means(totals: dict[str, float]) -> dict[str, float]:
    """Replace sums and counts by each band's mean; omit a band without images."""
    values = {name: value for name, value in totals.items() if not name.endswith((SUM, COUNT))}
    for name in BAND_NAMES:
        if totals.get(f"{name}{COUNT}"):
            values[name] = totals[f"{name}{SUM}"] / totals[f"{name}{COUNT}"]
    return values
