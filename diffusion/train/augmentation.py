"""Augmentation that the network is told of, so that its samples do not show it.

Karras et al. 2022 (EDM, 2206.00364), app. F.2, table 6: geometric transforms, drawn for each image. The nine
numbers that they are drawn as go into the network's embedding, and are zero when it samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.model.model_config import AUGMENTATION_NUMBERS
from diffusion.process.noise import counter_generator
from diffusion.system.device_transfer import to_device
from diffusion.train.affine import affine_resample
from diffusion.train.train_config import AUGMENTATIONS, AugmentConfig

SCALE = ANISOTROPY = 2**0.2  # A_scale and A_aniso, by which a standard deviation enlarges
TRANSLATION = 1 / 8  # A_trans, of the image's side


class AugmentParams(NamedTuple):
    """The table's a_0 … a_7 of each image, (B,) float64, zero where a transform is not made."""

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    rotation: Tensor
    axis: Tensor
    anisotropy: Tensor
    right: Tensor
    down: Tensor

    @property
    def moves(self) -> Tensor:
        """(B,) whether more than a flip is made."""
        return torch.stack(self[2:]).ne(0).any(0)

    def condition(self) -> Tensor:
        """(B, 9) float64: what the network is told, zero where nothing is made."""
        told = (
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
        assert len(told) == AUGMENTATION_NUMBERS
        return torch.stack(told, dim=1)

    def maps(self, side: int) -> Tensor:
        """(B, 2, 3) float64: from a pixel's place to that in the flipped image, in pixels from its centre.

        The inverse of: enlarge, turn, stretch along an axis, move.
        """
        moved = torch.stack((self.right, self.down), dim=1) * TRANSLATION * side
        stretch = ANISOTROPY ** torch.stack((-self.anisotropy, self.anisotropy), dim=1)
        back = _turn(self.axis) @ torch.diag_embed(stretch) @ _turn(-self.axis)
        back = _turn(-self.rotation) @ back * (SCALE**-self.scale)[:, None, None]
        return torch.cat((back, -back @ moved[..., None]), dim=2)


def augment(
    images: Tensor, config: AugmentConfig, name: tuple[str, int, int], rows: range
) -> tuple[Tensor, Tensor]:
    """The images (B, C, H, W) in [−1, 1], each transformed by the draws of its row, and (B, 9) of them.

    `rows` are their rows of the batch of this name. Both float32 on the images' device, for which nothing
    waits. Flips are exact; what resampling takes beyond [−1, 1] is cut off there, which the paper leaves.
    """
    drawn, device = draw_params(config, name, rows), images.device
    for axis, flipped in ((3, drawn.x_flip), (2, drawn.y_flip)):
        images = torch.where(to_device(flipped > 0, device)[:, None, None, None], images.flip(axis), images)
    moved = drawn.moves.nonzero().flatten()
    if len(moved):
        maps, places = (
            to_device(drawn.maps(images.shape[-1])[moved].float(), device),
            to_device(moved, device),
        )
        images = images.index_copy(0, places, affine_resample(images[places], maps).clamp(-1, 1))
    return images, to_device(drawn.condition().float(), device)


def draw_params(config: AugmentConfig, name: tuple[str, int, int], rows: range) -> AugmentParams:
    """What each row of the batch of this name draws: from (name, row) alone, whatever the kinds are.

    An x-flip is drawn for every image, so that half are; the others with the section's probability. The axis
    of anisotropy is turned half of the time and the image's own else, as in the paper's code.
    """
    uniforms, normals = torch.empty(len(rows), 11).double(), torch.empty(len(rows), 4).double()
    purpose, *numbers = name
    for row, uniform, normal in zip(rows, uniforms, normals, strict=True):
        source = counter_generator(f"{purpose} augmentation", *numbers, row)
        uniform.uniform_(generator=source)  # all of them, used or not: what follows stays in its place
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


def _turn(angle: Tensor) -> Tensor:
    """(B, 2, 2) of (B,) angles: x towards y."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), dim=1), torch.stack((sin, cos), dim=1)), dim=1)
