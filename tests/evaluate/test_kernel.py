import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.evaluate.scores import kernel_distance as kernel
from diffusion.evaluate.scores.kernel_distance import (
    Kernel,
    kernel_distance,
    kernels,
    leave_one_out,
    own_sums,
)
from diffusion.protocol.card import SEED, SUBSETS, subset_size


def normal(seed, count, dimension=16, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, dimension)) + shift).astype(np.float32)


def distance(a, b):
    drawn = kernel.subsets(len(a), len(b))
    return kernel_distance(kernels(a, b), drawn, own_sums(Kernel(b, b), drawn.reference))


@settings(deadline=None)
@given(st.integers(2, 10**6), st.integers(2, 10**6))
def test_subset_size_fits_both_sets(count, reference_count):
    size = subset_size(count, reference_count)
    assert 2 <= size <= 500
    assert size <= min(count, reference_count)
    assert size <= max(2, min(count, reference_count) // 2)


@pytest.mark.parametrize(("count", "real_count"), [(40, 90), (90, 40), (3, 400)])
@pytest.mark.parametrize("whole", [True, False])
def test_kernel_distance_equals_torch_fidelity(monkeypatch, count, real_count, whole):
    from torch_fidelity.metric_kid import kid_features_to_metric

    if not whole:
        monkeypatch.setattr(kernel, "WHOLE", 0)
    a, b = normal(0, count), normal(1, real_count, shift=0.5)
    size = subset_size(count, real_count)
    want = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=SUBSETS,
        kid_subset_size=size,
        rng_seed=SEED,
        verbose=False,
    )
    got = distance(a, b)
    assert got.mean == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)
    assert got.std == pytest.approx(want["kernel_inception_distance_std"], rel=1e-6)


def unbiased(x, y):
    """The estimator of 1801.01401, sec. 4, written out."""
    kxx, kyy, kxy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    pairs = [k[~np.eye(len(k), dtype=bool)].mean() for k in (kxx, kyy)]
    return sum(pairs) - 2 * kxy.mean()


def test_kernel_distance_is_the_mean_over_subsets():
    a, b = normal(0, 120).astype(float), normal(1, 150, shift=0.5).astype(float)
    drawn = kernel.subsets(120, 150)
    want = [unbiased(a[x], b[y]) for x, y in zip(*drawn, strict=True)]
    assert distance(a.astype(np.float32), b.astype(np.float32)).mean == pytest.approx(np.mean(want), rel=1e-3)


def test_kernel_distance_is_unbiased_and_detects_a_shift():
    a, b = normal(1, 400), normal(2, 400)
    same, shifted = distance(a, b), distance(a + 1, b)
    assert abs(same.mean) < 3 * same.std
    assert shifted.mean > 10 * same.std


def test_leave_one_out_is_exact_up_to_a_constant():
    a, b = normal(0, 30), normal(1, 50, shift=0.5)
    want = np.array([unbiased(np.delete(a, i, axis=0).astype(float), b.astype(float)) for i in range(30)])
    got = leave_one_out(kernels(a, b))
    np.testing.assert_allclose(got - got.mean(), want - want.mean(), atol=1e-5)
