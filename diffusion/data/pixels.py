"""Images of any size to squares of one size, as ADM prepares ImageNet (2105.05233)."""

import numpy as np
from PIL import Image

from diffusion.data.store import Images


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` and crop the centre.

    The image is halved with a box filter while its short side is at least twice the size, then scaled
    bicubically with antialiasing; it is copied when it fits already.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        shape = (round(image.width * scale), round(image.height * scale))
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def fit(images: Images, size: int) -> Images:
    """A batch (N, H, W, C) with 1 or 3 channels as squares (N, size, size, C)."""
    if images.shape[1:3] == (size, size):
        return images
    out = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        out[index] = np.asarray(square(picture, size)).reshape(size, size, -1)
    return out


def transforms(native: tuple[int, ...], shape: tuple[int, ...]) -> list[str]:
    """What `fit` does to get from one (H, W, C) to another, in words for the store's meta."""
    if native[:2] == shape[:2]:
        return []
    return [f"short side to {shape[0]} (box halving, then bicubic)", f"centre crop to {shape[0]}×{shape[1]}"]
