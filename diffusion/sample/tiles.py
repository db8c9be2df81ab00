"""Images larger than a network's: denoised in overlapping tiles, with averaged predictions.

Samplers are linear in predictions, so that this is the mean of the tiles' steps (MultiDiffusion, Bar-Tal
et al. 2023, 2302.08113, eq. 5).
"""

from itertools import product

import torch
from torch import Tensor

from diffusion.images.image_size import Size
from diffusion.process.denoiser import Condition, Denoiser, Prediction

OVERLAP = 2  # a tile begins at the latest half a tile after the one before


def tile_starts(length: int, size: int) -> list[int]:
    """Return the first pixels of tiles that cover `length` pixels evenly and overlap by at least half."""
    if length <= size:
        return [0]
    count = -(-(length - size) * OVERLAP // size) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def tiled(denoiser: Denoiser, size: Size) -> Denoiser:
    """Return the denoiser of images of at least `size` (H, W) from one of images of that size.

    All tiles of an image have its condition. With a time per row each tile has its image's.
    """

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        starts = [tile_starts(length, side) for length, side in zip(x.shape[2:], size, strict=True)]
        if len(places := [*product(*starts)]) == 1:
            return denoiser(x, t, condition)
        height, width = size
        crops = [(..., slice(top, top + height), slice(left, left + width)) for top, left in places]
        times = t.repeat(len(crops)) if isinstance(t, Tensor) and t.ndim else t
        conditions = Condition.cat([condition] * len(crops))
        prediction = denoiser(torch.cat([x[crop] for crop in crops]), times, conditions)
        covered = torch.zeros_like(x[:1])
        for crop in crops:
            covered[crop] += 1

        def joined(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            whole = torch.zeros_like(x)
            for crop, tile in zip(crops, part.chunk(len(crops)), strict=True):
                whole[crop] = whole[crop] + tile
            return whole / covered

        whole = Prediction(*map(joined, prediction._replace(keeps_eps=None)))  # type: ignore[arg-type]
        keeps_eps = prediction.keeps_eps  # per image, and equal for all its tiles
        return whole._replace(keeps_eps=None if keeps_eps is None else keeps_eps[: len(x)])

    return call
