"""Guidance away from the prediction for a blurred image (Hong et al. 2023, 2210.00939, simplified)."""

from torch.nn.functional import avg_pool2d

from diffusion.process.denoiser import Denoiser, Prediction
from diffusion.sample.guidance import Inputs, Weight, extrapolate


def build(denoiser: Denoiser, weight: Weight, guide: Denoiser | None = None) -> Denoiser:
    """D(x) + w·(D(x) − D(x blurred by 3×3)); it needs neither labels nor a guide."""

    def pair(rows: Inputs, guided_rows: Inputs) -> tuple[Prediction, Prediction]:
        x, t, condition = guided_rows
        return denoiser(*rows), denoiser(avg_pool2d(x, 3, 1, 1, count_include_pad=False), t, condition)

    return extrapolate(denoiser, pair, weight)
