"""Which images a step of training sees: all of them once an epoch, each in an order of its own."""

from functools import lru_cache

import torch
from torch import Tensor

from diffusion.process.noise import counter_generator


def epoch_rows(purpose: str, seed: int, places: range, count: int) -> Tensor:
    """The rows, (len(places),) int64 in [0, count), at these places of a walk through epoch after epoch.

    Place p is place p mod `count` of epoch p // `count`, so that nothing but the place is needed to go on.
    """
    parts, place = [], places.start
    while place < places.stop:
        epoch, first = divmod(place, count)
        last = min(count, first + places.stop - place)
        parts.append(_permutation(purpose, seed, epoch, count)[first:last])
        place += last - first
    return torch.cat(parts)


@lru_cache(maxsize=2)  # this epoch's and the next one's: a batch, or what is drawn ahead, may span both
def _permutation(purpose: str, seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=counter_generator(f"{purpose} epoch", seed, epoch))
