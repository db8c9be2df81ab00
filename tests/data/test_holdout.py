"""Held-out splits: deterministic, exact and stratified."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.holdout import hold_out, shuffled

LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=80).map(np.array)


def test_permutation_has_golden_values():
    assert shuffled(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]  # raw PCG64 bits are stable


@given(labels=LABELS, part=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_stratified_split_is_exact_disjoint_and_proportional(labels, part, seed):
    held_out = min(len(labels) - 1, max(1, round(part * len(labels))))
    train, test = hold_out(labels, len(labels), held_out, seed)
    assert len(test) == held_out
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    sizes = np.bincount(labels, minlength=6)
    shares = np.bincount(labels[test], minlength=6)
    kept_one = held_out <= np.maximum(sizes - 1, 0).sum()
    if kept_one:
        assert all(share < size for share, size in zip(shares, sizes, strict=True) if size)
    if sizes[sizes > 0].min() >= 4 and 0.1 < part < 0.7:
        assert abs(shares - sizes * held_out / len(labels)).max() <= 1


def test_both_sides_are_shuffled():
    labels = np.repeat(np.arange(10), 100)
    for rows in hold_out(labels, 1000, 300, 0):
        assert len(set(labels[rows[:40]])) >= 8


@pytest.mark.parametrize("held_out", [0, 5, 6, -1])
def test_empty_side_is_refused(held_out):
    with pytest.raises(ValueError, match="cannot hold out"):
        hold_out(None, 5, held_out, 0)
