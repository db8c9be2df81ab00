"""Holding out test images where a data set has no official split; the same on every machine and version."""

import numpy as np
from numpy.typing import NDArray

from diffusion.images.store import Labels

Indices = NDArray[np.int64]


def shuffled(count: int, *seed: int) -> Indices:
    """A permutation of `count` indices that depends on the seeds alone.

    Sorting raw bits keeps it the same over NumPy versions, which `Generator.permutation` does not promise.
    """
    order: Indices = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    return order


def hold_out(labels: Labels | None, count: int, held_out: int, seed: int) -> tuple[Indices, Indices]:
    """Shuffled (train, test) indices of `count` images with exactly `held_out` in test.

    With labels every class gives its share, rounded by largest remainder, and keeps at least one image to
    train on if it can. ValueError unless 0 < held_out < count.
    """
    if not 0 < held_out < count:
        raise ValueError(f"cannot hold out {held_out} of {count} images: at least one must be on each side")
    in_test = _chosen(labels, held_out, shuffled(count, seed, 0))
    order = shuffled(count, seed, 1)  # another one: in the first, the held-out images of a class come early
    return order[~in_test[order]], order[in_test[order]]


def _chosen(labels: Labels | None, held_out: int, order: Indices) -> NDArray[np.bool_]:
    """Which images are held out: the first in the order, of every class its share."""
    chosen = np.zeros(len(order), dtype=bool)
    if labels is None:
        chosen[order[:held_out]] = True
        return chosen
    classes, sizes = np.unique(labels, return_counts=True)
    ordered = labels[order]
    for label, share in zip(classes, _shares(sizes, held_out), strict=True):
        chosen[order[ordered == label][:share]] = True
    return chosen


def _shares(sizes: Indices, total: int) -> Indices:
    """How many of each class are held out: in proportion, and not all of a class if that can be avoided."""
    exact = sizes * (total / sizes.sum())
    most = sizes - 1 if total <= (sizes - 1).sum() else sizes
    shares: Indices = np.minimum(np.floor(exact).astype(np.int64), most)
    while shares.sum() < total:
        missing = exact - shares
        open_ones = np.flatnonzero(shares < most)
        largest = open_ones[np.argsort(-missing[open_ones], kind="stable")]
        shares[largest[: total - shares.sum()]] += 1
    return shares
