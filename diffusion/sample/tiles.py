"""Images larger than a network's: denoised in overlapping tiles, with averaged predictions.

Samplers are linear in predictions, so that this is the mean of the tiles' steps (MultiDiffusion, Bar-Tal
et al. 2023, 2302.08113, eq. 5).
"""

from collections import defaultdict
from collections.abc import Callable
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


def tiled(build: Callable[[], Denoiser], size: Size, batch_size: int) -> Denoiser:
    """Return the denoiser of images of at least `size` (H, W) from those of images of that size.

    A forward pass has at most `batch_size` tiles, but at least one of each image. A denoiser of `build` gets
    the same tiles in each call, since guidance may keep state. All tiles of an image have its condition. With
    a time per row each tile has its image's.
    """
    denoisers: defaultdict[int, Denoiser] = defaultdict(build)

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        starts = [tile_starts(length, side) for length, side in zip(x.shape[2:], size, strict=True)]
        if len(places := [*product(*starts)]) == 1:
            return denoisers[0](x, t, condition)
        height, width = size
        crops = [(..., slice(top, top + height), slice(left, left + width)) for top, left in places]
        covered = torch.zeros_like(x[:1])
        for crop in crops:
            covered[crop] += 1
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros_like(x))
        step = max(1, batch_size // len(x))
        for first in range(0, len(crops), step):
            chosen = crops[first : first + step]
            times = t.repeat(len(chosen)) if isinstance(t, Tensor) and t.ndim else t
            conditions = Condition.cat([condition] * len(chosen))
            prediction = denoisers[first](torch.cat([x[crop] for crop in chosen]), times, conditions)
            parts = prediction._replace(keeps_eps=None)._asdict()
            for name, part in parts.items():
                if part is not None:
                    for crop, tile in zip(chosen, part.chunk(len(chosen)), strict=True):
                        sums[name][crop] = sums[name][crop] + tile
        keeps_eps = prediction.keeps_eps  # per image, and equal for all its tiles
        means = {name: whole / covered for name, whole in sums.items()}
        return Prediction(**means, keeps_eps=None if keeps_eps is None else keeps_eps[: len(x)])

    return call
