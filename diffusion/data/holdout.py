"""Hold out test images where a data set has no official split; equal on all machines and versions."""

import numpy as np
from numpy.typing import NDArray

from diffusion.images.store import Labels

Indices = NDArray[np.int64]


def shuffled(count: int, *seed: int) -> Indices:
    """Return a permutation of `count` indices by the seeds alone, stable across NumPy versions."""
    order: Indices = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    return order


def hold_out(labels: Labels | None, count: int, held_out: int, seed: int) -> tuple[Indices, Indices]:
    """Return shuffled (train, test) indices of `count` images with exactly `held_out` in test.

    With labels, each class gives its share (largest remainder) and keeps at least one training image if
    possible. ValueError unless 0 < held_out < count.
    """
    if not 0 < held_out < count:
        raise ValueError(f"cannot hold out {held_out} of {count} images: at least one must be on each side")
    labels = np.zeros(count, dtype=np.int64) if labels is None else labels
    classes, sizes = np.unique(labels, return_counts=True)
    order, in_test = shuffled(count, seed, 0), np.zeros(count, dtype=bool)
    ordered = labels[order]
    for label, share in zip(classes, _shares(sizes, held_out), strict=True):
        in_test[order[ordered == label][:share]] = True
    order = shuffled(count, seed, 1)  # a second one: in the first, held-out images of a class come early
    return order[~in_test[order]], order[in_test[order]]


def _shares(sizes: Indices, total: int) -> Indices:
    """Return the number to hold out per class: proportional, and not a whole class if that can be avoided."""
    exact = sizes * (total / sizes.sum())
    limit = sizes - 1 if total <= (sizes - 1).sum() else sizes
    shares: Indices = np.minimum(np.floor(exact).astype(np.int64), limit)
    while shares.sum() < total:
        missing = exact - shares
        open_ones = np.flatnonzero(shares < limit)
        largest = open_ones[np.argsort(-missing[open_ones], kind="stable")]
        shares[largest[: total - shares.sum()]] += 1
    return shares
