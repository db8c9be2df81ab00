"""Low-resolution images as a condition: means over blocks of pixels, with noise of a known level."""

import torch.nn.functional as F
from torch import Tensor

from diffusion.process.denoiser import expand


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the means over f×f pixels of images (B, C, H, W) that are f times a size (h, w)."""
    return F.avg_pool2d(images, images.shape[2] // size[0])


def add_noise(low_res: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Return z + s·ε for low-resolution images (B, C, h, w), their levels (B,) and standard-normal ε."""
    return low_res + expand(level, low_res) * noise
