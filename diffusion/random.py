"""Randomness by counter: every draw comes from a generator named by its purpose and its numbers.

Nothing draws from a global generator, so a resumed run, another batch size or another order of work
cannot move a draw.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator that depends on the purpose and the numbers alone."""
    name = f"{purpose}:{':'.join(str(number) for number in numbers)}"
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(seed)


class ImageNoise:
    """The noise of some images of a sample: image i's depends on (seed, i) alone.

    The first `draw` is x_T; each further one is a step's z. Draws are (B, C, H, W) float32 on the CPU, so
    that every device sees the same noise.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int]) -> None:
        self._generators = [generator("image", seed, index) for index in indices]
        self._shape = shape

    def draw(self) -> Tensor:
        """The next standard-normal draw of every image."""
        noise = torch.empty(len(self._generators), *self._shape)
        for image, source in zip(noise, self._generators, strict=True):
            image.normal_(generator=source)
        return noise
