"""Images seen through an affine map, resampled as Karras et al. do for augmentation.

The image is made twice as fine by the synthesis filter of the wavelet sym6, looked up between its pixels
linearly, and halved by the same filter (2006.06676, app. B.2). Where the map moves nothing the two filters
undo each other, since a wavelet's are orthonormal. Beyond its edges an image is mirrored.

Every sum is taken term by term, so that an image's numbers do not hang on which others are beside it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The scaling filter of sym6 (Daubechies 1992, table 6.3, scaled to a sum of √2): orthonormal to its even
# shifts, with six vanishing moments.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
HALF = len(SYM6) // 2
CENTRE = sum(place * tap for place, tap in enumerate(SYM6)) / sum(SYM6)  # where it puts what it filters
PAD = HALF  # pixels mirrored on each side before the image is made finer


def affine_resample(images: Tensor, maps: Tensor) -> Tensor:
    """(B, C, H, W) and (B, 2, 3) → (B, C, H, W): at each pixel's place p what the image has at A·p + b.

    Places are (x, y) in pixels from the image's centre, x to the right and y down. All float32, of one
    device; nothing waits for it.
    """
    height, width = images.shape[2:]
    finer = _finer(_finer(_mirrored(images), 2), 3)
    places = _fine_places(height, width, maps)
    rows, columns = _index(places[..., 1], height), _index(places[..., 0], width)
    last = finer.shape[3] - 1, finer.shape[2] - 1  # numbers: a tensor of them would have the host wait
    grid = torch.stack(
        [place * 2 / end - 1 for place, end in zip((columns, rows), last, strict=True)], dim=-1
    )
    seen = F.grid_sample(finer, grid, padding_mode="border", align_corners=True)
    return _coarser(_coarser(seen, 2), 3)


def _mirrored(images: Tensor) -> Tensor:
    """The images with PAD more pixels on each side, mirrored at their edges as often as that takes."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(-PAD, size + PAD, device=images.device) % (2 * size)
        images = images.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
    return images


def _finer(x: Tensor, axis: int) -> Tensor:
    """Twice as many pixels along an axis, from the first whole sum: m lies at (m − CENTRE)/2 + HALF − 1."""
    count = x.shape[axis] - HALF + 1
    shifted = [x.narrow(axis, HALF - 1 - place, count) for place in range(HALF)]
    phases = [_weighted(shifted, SYM6[phase::2], math.sqrt(2)) for phase in (0, 1)]
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)


def _coarser(x: Tensor, axis: int) -> Tensor:
    """Half as many pixels along an axis: n is what the filter sees from 2n on."""
    count = x.shape[axis] // 2 - HALF + 1
    phases = [
        x.index_select(axis, torch.arange(phase, x.shape[axis], 2, device=x.device)) for phase in (0, 1)
    ]
    seen = [phases[tap % 2].narrow(axis, tap // 2, count) for tap in range(2 * HALF)]
    return _weighted(seen, SYM6, 1 / math.sqrt(2))


def _weighted(parts: list[Tensor], taps: tuple[float, ...], gain: float) -> Tensor:
    total = parts[0] * (taps[0] * gain)
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        total = total + part * (tap * gain)
    return total


def _fine_places(height: int, width: int, maps: Tensor) -> Tensor:
    """(B, 2·(H−1) + 2·HALF, …, 2): where the map leads from each place that the halving filter sees."""
    y, x = (
        (torch.arange(2 * (size - 1 + HALF), device=maps.device) - CENTRE) / 2 - (size - 1) / 2
        for size in (height, width)
    )
    y, x = y[:, None], x[None, :]
    parts = [
        maps[:, row, 0, None, None] * x + maps[:, row, 1, None, None] * y + maps[:, row, 2, None, None]
        for row in (0, 1)
    ]
    return torch.stack(parts, dim=-1)


def _index(place: Tensor, size: int) -> Tensor:
    """Where a place along an axis of that many pixels lies among the finer ones, mirrored at the edges."""
    from_edge = (place + size / 2) % (2 * size)
    pixel = torch.minimum(from_edge, 2 * size - from_edge) - 0.5
    return 2 * (pixel + PAD - HALF + 1) + CENTRE
