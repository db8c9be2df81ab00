"""Scores of edited images against their originals: error of the measurement, PSNR, SSIM, and the spread.

PSNR and SSIM are those of torchmetrics (`diffctl[edit]`), an optional dependency.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion.choice.confidence import student_interval
from diffusion.edit.operators import Measurement
from diffusion.images.pixels import to_model

LEVELS = 127.5  # grey levels in a unit of [−1, 1]
MAX_PSNR = 100.0  # dB, of equal images

SCORES = {
    "measured_error": "RMS error of the measurement, in grey levels; hidden pixels count as 0",
    "psnr": "peak signal-to-noise ratio to the original, in dB",
    "ssim": "structural similarity to the original",
    "spread": "RMS deviation over the results of one picture, in grey levels",
}


def scores_by_picture(results: Tensor, originals: Tensor, measurement: Measurement) -> dict[str, Tensor]:
    """Return SCORES of each picture, (K,) float64, means over its results.

    `results` are uint8 (K, R, C, H, W), `originals` uint8 (K, C, H, W); the measurement has K rows. There is
    no spread for one result.
    """
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    count, repeats = results.shape[:2]
    made = results.flatten(0, 1)
    wanted = originals.repeat_interleave(repeats, 0)
    pair = made.double(), wanted.double()
    similarity: Any = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
    ratio = peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))
    by_image: dict[str, Tensor] = {"psnr": ratio.clamp(max=MAX_PSNR), "ssim": similarity}
    if measurement.operator is not None:
        y = measurement.y.cpu().repeat_interleave(repeats, 0)
        error = measurement.operator.apply(to_model(made)) - y
        by_image = {"measured_error": LEVELS * error.double().square().flatten(1).mean(1).sqrt()} | by_image
    scores = {name: values.reshape(count, repeats).mean(1) for name, values in by_image.items()}
    if repeats > 1:
        scores["spread"] = results.double().var(1).flatten(1).mean(1).sqrt()
    return scores


def mean_scores(by_picture: dict[str, Tensor]) -> dict[str, float]:
    """Return the means over pictures, with the ends of their intervals by Student's t: `…_low`, `…_high`."""
    scores: dict[str, float] = {}
    for name, values in by_picture.items():
        low, high = student_interval(values.tolist()) if len(values) > 1 else (-math.inf, math.inf)
        scores |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return scores


def interval_scores(scores: Mapping[str, float]) -> list[str]:
    """Return the names of the scores that have an interval."""
    return [name for name in scores if f"{name}_low" in scores]


def mean_and_half(scores: Mapping[str, float], name: str) -> str:
    """Return a score as text, with half of its interval."""
    half = (scores[f"{name}_high"] - scores[f"{name}_low"]) / 2
    return f"{scores[name]:.3g} ± {half:.2g}"
