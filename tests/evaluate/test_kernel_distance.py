"""Kernel distances (KID and CMMD) equal torch-fidelity and the published formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.evaluate.scores import kernel_distance as kernel
from diffusion.evaluate.scores.kernel_distance import (
    Embeddings,
    Kernel,
    cmmd,
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


CPU = torch.device("cpu")


def unit(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 24)) + shift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def of(features: np.ndarray) -> Embeddings:
    return Embeddings(features, CPU)


def published(x: np.ndarray, y: np.ndarray) -> float:
    """1,000 times the mean kernels of all pairs, σ = 10."""

    def mean(a, b):
        squares = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0, 2), st.sampled_from([3, 16, 2048]))
def test_cmmd_equals_the_published_formula(count, others, shift, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CMMD_BLOCK", block)
        x, y = unit(0, count, shift), unit(1, others)
        assert cmmd(of(x), of(y)) == pytest.approx(published(x, y), abs=2e-5)


def test_cmmd_is_a_symmetric_distance():
    x, y = unit(0, 50), unit(1, 60, 0.5)
    assert cmmd(of(x), of(x[::-1].copy())) == pytest.approx(0, abs=1e-5)
    assert cmmd(of(x), of(y)) == pytest.approx(cmmd(of(y), of(x)), abs=1e-5)
    assert cmmd(of(x), of(y)) > cmmd(of(x), of(unit(2, 60)))
