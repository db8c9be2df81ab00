"""Tensors in buckets: of as many as are worked on at once, and never of all of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

BUCKET = 16 * 2**20  # numbers that are worked on at a time

Item = TypeVar("Item")


def buckets(
    items: Sequence[Item], tensor_of: Callable[[Item], Tensor], most: int = BUCKET
) -> Iterator[list[Item]]:
    """The items in order, in lists whose tensors are of one type and have at most `most` numbers.

    A single larger tensor is a list of its own.
    """
    bucket: list[Item] = []
    size = 0
    for item in items:
        tensor = tensor_of(item)
        if bucket and (size + tensor.numel() > most or tensor.dtype != tensor_of(bucket[0]).dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += tensor.numel()
    if bucket:
        yield bucket
