"""Randomness by counter: every draw comes from a generator named by its purpose and its numbers.

Nothing draws from a global generator, so a resumed run, another batch size or another order of work
cannot move a draw.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Where torch keeps the words of its Mersenne Twister among the bytes of a generator's state.
WORDS = slice(24, 24 + 624 * 8)


def counter_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on the purpose and the numbers alone.

    torch seeds it by 32 bits, whatever it is given: of 2,048 rows of a batch two are equal once in 2,000
    batches, which harms no training.
    """
    seed = int.from_bytes(hashlib.blake2b(_name(purpose, numbers), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(seed)


def full_state_generator(purpose: str, *numbers: int) -> torch.Generator:
    """As `counter_generator`, with all of its state from the name, at five times the cost.

    For noise that must be each image's own: by seeds of 32 bits, of 50,000 images two would be expected to be
    equal in 3 samples of 10.
    """
    words = hashlib.shake_128(_name(purpose, numbers)).digest(624 * 4)
    source = torch.Generator().manual_seed(0)
    state = source.get_state()
    state[WORDS].view(torch.int64)[:] = torch.frombuffer(bytearray(words), dtype=torch.uint32).long()
    return source.set_state(state)


def _name(purpose: str, numbers: Sequence[int]) -> bytes:
    return f"{purpose}:{':'.join(map(str, numbers))}".encode()


class ImageNoise:
    """The noise of some images of a sample: image i's depends on (seed, i) alone.

    The first `draw` is x_T, standard-normal numbers times `initial_scale`; each further one is a step's z.
    Another `purpose` has other noise. Draws are (B, C, H, W) float32 on the CPU, so that every device sees
    the same noise.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: tuple[int, int, int],
        initial_scale: float = 1.0,
        purpose: str = "image",
    ) -> None:
        self._generators = [full_state_generator(purpose, seed, index) for index in indices]
        self._shape, self._scale = shape, initial_scale

    def draw(self) -> Tensor:
        """Return the next draw of every image."""
        noise = torch.empty(len(self._generators), *self._shape)
        for image, source in zip(noise, self._generators, strict=True):
            image.normal_(generator=source)
        scale, self._scale = self._scale, 1.0
        return noise if scale == 1 else scale * noise
