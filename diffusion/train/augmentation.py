"""Non-leaky augmentation: the network is conditioned with the transforms, so that samples do not show them.

Karras et al. 2022 (EDM, 2206.00364), app. F.2, table 6: geometric transforms, drawn for each image. Nine
numbers that describe them are an input of the network's embedding, and are zero when it samples.

Images are resampled as in Karras et al. 2020 (2006.06676, app. B.2): upsampled twofold by the synthesis
filter of the wavelet sym6, sampled bilinearly, and downsampled by the same filter. For the identity map the
filters cancel, since those of a wavelet are orthonormal. Images are mirrored at their edges. Every sum is
computed term by term, so that an image's result does not depend on the rest of the batch.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.model.network_registry import AUGMENTATION_NUMBERS
from diffusion.process.noise import counter_generator
from diffusion.system.devices import to_device
from diffusion.train.train_config import AUGMENTATIONS, AugmentConfig

SCALE = ANISOTROPY = 2**0.2  # A_scale and A_aniso: the factor of one standard deviation
TRANSLATION = 1 / 8  # A_trans, of the image's width or height
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
CENTRE = sum(place * tap for place, tap in enumerate(SYM6)) / sum(SYM6)  # the filter's delay
PAD = HALF  # further pixels on each side of a period of the mirrored image


class AugmentParams(NamedTuple):
    """The table's a_0 … a_7 of each image, (B,) float64, zero for a transform that is not applied."""

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    rotation: Tensor
    axis: Tensor
    anisotropy: Tensor
    right: Tensor
    down: Tensor

    def condition(self) -> Tensor:
        """Return the network's condition, (B, 9) float64, zero without a transform."""
        columns = (
            self.x_flip,
            self.y_flip,
            self.scale,
            self.rotation.cos() - 1,
            self.rotation.sin(),
            self.anisotropy * self.axis.cos(),
            self.anisotropy * self.axis.sin(),
            self.right,
            self.down,
        )
        assert len(columns) == AUGMENTATION_NUMBERS
        return torch.stack(columns, dim=1)

    def maps(self, height: int, width: int) -> Tensor:
        """Return (B, 2, 3) float64 maps of an output pixel to its source, in pixels from the centre."""
        moved = torch.stack((self.right * TRANSLATION * width, self.down * TRANSLATION * height), dim=1)
        stretch = ANISOTROPY ** torch.stack((-self.anisotropy, self.anisotropy), dim=1)
        back = _rotation(self.axis) @ torch.diag_embed(stretch) @ _rotation(-self.axis)
        back = _rotation(-self.rotation) @ back * (SCALE**-self.scale)[:, None, None]
        return torch.cat((back, -back @ moved[..., None]), dim=2)


def augment(
    images: Tensor, config: AugmentConfig, name: tuple[str, int, int], rows: range
) -> tuple[Tensor, Tensor]:
    """Transform images (B, C, H, W) in [−1, 1] by their rows' draws; return them and the condition (B, 9).

    `rows` are their rows of the batch with this name. Both are float32 on the images' device, without a
    synchronisation. Flips are exact. Resampled values are clamped to [−1, 1], unlike in the paper.
    """
    drawn, device = draw_params(config, name, rows), images.device
    for axis, flipped in ((3, drawn.x_flip), (2, drawn.y_flip)):
        images = torch.where(to_device(flipped > 0, device)[:, None, None, None], images.flip(axis), images)
    moved = torch.stack(drawn[2:]).ne(0).any(0).nonzero().flatten()
    if len(moved):
        maps = to_device(drawn.maps(*images.shape[2:])[moved].float(), device)
        places = to_device(moved, device)
        images = images.index_copy(0, places, affine_resample(images[places], maps).clamp(-1, 1))
    return images, to_device(drawn.condition().float(), device)


def draw_params(config: AugmentConfig, name: tuple[str, int, int], rows: range) -> AugmentParams:
    """Draw the parameters of each row from (name, row) alone, independent of the configured kinds.

    An x-flip is drawn for every image, so that half are flipped; the others with the configured probability.
    The axis of anisotropy is rotated for half of the images, as in the paper's code.
    """
    uniforms, normals = torch.empty(len(rows), 11).double(), torch.empty(len(rows), 4).double()
    purpose, *numbers = name
    for row, uniform, normal in zip(rows, uniforms, normals, strict=True):
        source = counter_generator(f"{purpose} augmentation", *numbers, row)
        uniform.uniform_(generator=source)  # all of them, used or not, so that later draws keep their place
        normal.normal_(generator=source)
    halves, angles = (uniforms[:, 6:9] < 0.5).double(), (2 * uniforms[:, 9:] - 1) * math.pi
    made = {
        kind: (gate < (1 if kind == "x-flip" else config.probability)) * float(kind in config.kinds)
        for kind, gate in zip(AUGMENTATIONS, uniforms[:, :6].T, strict=True)
    }
    return AugmentParams(
        x_flip=made["x-flip"] * halves[:, 0],
        y_flip=made["y-flip"] * halves[:, 1],
        scale=made["scaling"] * normals[:, 0],
        rotation=made["rotation"] * angles[:, 0],
        axis=made["anisotropy"] * halves[:, 2] * angles[:, 1],
        anisotropy=made["anisotropy"] * normals[:, 1],
        right=made["translation"] * normals[:, 2],
        down=made["translation"] * normals[:, 3],
    )


def _rotation(angle: Tensor) -> Tensor:
    """Return rotations (B, 2, 2) by angles (B,), from x towards y."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), dim=1), torch.stack((sin, cos), dim=1)), dim=1)


def affine_resample(images: Tensor, maps: Tensor) -> Tensor:
    """Return images (B, C, H, W) resampled by maps (A | b) (B, 2, 3): pixel p is the input at A·p + b.

    Positions are (x, y) in pixels from the centre, x to the right and y down. All are float32 on one device;
    there is no synchronisation.
    """
    height, width = images.shape[2:]
    finer = _upsample(_upsample(_mirror_period(images), 2), 3)
    places = _source_positions(height, width, maps)
    rows, columns = _upsampled_index(places[..., 1], height), _upsampled_index(places[..., 0], width)
    grid = torch.stack((columns * 2 / (finer.shape[3] - 1) - 1, rows * 2 / (finer.shape[2] - 1) - 1), dim=-1)
    seen = F.grid_sample(finer, grid, align_corners=True)
    return _downsample(_downsample(seen, 2), 3)


def _mirror_period(images: Tensor) -> Tensor:
    """Return a period of the mirrored images, and PAD pixels around, so that filters cancel at edges."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(-PAD, 2 * size + PAD, device=images.device) % (2 * size)
        images = images.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
    return images


def _upsample(x: Tensor, axis: int) -> Tensor:
    """Upsample along an axis, from the first complete sum; output m is at (m − CENTRE)/2 + HALF − 1."""
    count = x.shape[axis] - HALF + 1
    shifted = [x.narrow(axis, HALF - 1 - place, count) for place in range(HALF)]
    phases = [_weighted_sum(shifted, SYM6[phase::2], math.sqrt(2)) for phase in (0, 1)]
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)


def _downsample(x: Tensor, axis: int) -> Tensor:
    """Downsample along an axis; output n is the filter applied from 2n on."""
    count = x.shape[axis] // 2 - HALF + 1
    phases = [
        x.index_select(axis, torch.arange(phase, x.shape[axis], 2, device=x.device)) for phase in (0, 1)
    ]
    seen = [phases[tap % 2].narrow(axis, tap // 2, count) for tap in range(2 * HALF)]
    return _weighted_sum(seen, SYM6, 1 / math.sqrt(2))


def _weighted_sum(parts: list[Tensor], taps: tuple[float, ...], gain: float) -> Tensor:
    total = parts[0] * (taps[0] * gain)
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        total = total + part * (tap * gain)
    return total


def _source_positions(height: int, width: int, maps: Tensor) -> Tensor:
    """Return the mapped position of each input of the downsampling, (B, 2·(H−1) + 2·HALF, …, 2)."""
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


def _upsampled_index(place: Tensor, size: int) -> Tensor:
    """Return the upsampled index of a position along an axis of `size` pixels, within the period."""
    return 2 * ((place + (size - 1) / 2) % (2 * size) + PAD - HALF + 1) + CENTRE
