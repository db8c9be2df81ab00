"""Moments, statistics, Fréchet distance and Inception score by closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluate.features.extractors import extract
from diffusion.evaluate.scores import moments, torch_fidelity_scores
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.torch_fidelity_scores import (
    Statistics,
    frechet_distance,
    inception_score,
    statistics,
)
from tests.helpers.digits_sweep import effnet, real_digits


def normal(seed, count, dimension, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(3, 1, size=(count, dimension))).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.01, 1000))
def test_merged_moments_equal_those_of_all(seed, sizes, scale):
    features = normal(seed, sum(sizes), 7, scale)
    ends = np.cumsum(sizes)
    parts = [moments.moments(part) for part in np.split(features, ends[:-1])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    x = features.astype(np.float64)
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-10)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(merged.scatter, centred.T @ centred, rtol=1e-10, atol=1e-10 * (x**2).sum())


def test_large_reference_is_converted_in_blocks(monkeypatch):
    """Blocks give the same statistics, and no block is larger than the limit."""
    real, sample = normal(1, 5000, 8), normal(2, 60, 8, 1.1)
    whole, statistics = Target(real), torch_fidelity_scores.statistics(real)
    seen = []

    def watched(features):
        seen.append(len(features))
        return of_block(features)

    of_block = moments._of_block
    for module in (moments, torch_fidelity_scores):
        monkeypatch.setattr(module, "BLOCK", 512)
    monkeypatch.setattr(moments, "_of_block", watched)
    blocks, other = Target(real), torch_fidelity_scores.statistics(real)
    assert max(seen) == 512
    assert sum(seen) == 2 * len(real)
    assert blocks.trace == pytest.approx(whole.trace, rel=1e-10)
    want = ProjectedSample(sample, whole).distance
    assert ProjectedSample(sample, blocks).distance == pytest.approx(want, rel=1e-10)
    np.testing.assert_array_equal(other.mu, statistics.mu)
    np.testing.assert_allclose(other.sigma, statistics.sigma, rtol=1e-10, atol=1e-12)


def test_statistics_equal_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics

    features = normal(0, 200, 6)
    want = fid_features_to_statistics(torch.from_numpy(features))
    got = torch_fidelity_scores.statistics(features)
    np.testing.assert_array_equal(got.mu, want["mu"])
    np.testing.assert_array_equal(got.sigma, want["sigma"])


@pytest.fixture(scope="module")
def extractor():
    return effnet()


@pytest.fixture(scope="module")
def digits(extractor):
    """Return features of 300 real digits."""
    return extract(extractor, real_digits()[0][:300])


def covariance(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 12))
def test_gaussian_distance_equals_the_closed_form(seed, size):
    rng = np.random.default_rng(seed)
    mu_a, mu_b = rng.normal(size=(2, size))
    sigma_a, sigma_b = covariance(rng, size), covariance(rng, size)
    closed = np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * sqrtm(sigma_a @ sigma_b).real)
    got = frechet_distance(Statistics(mu_a, sigma_a), Statistics(mu_b, sigma_b))
    assert got == pytest.approx(closed, rel=1e-8, abs=1e-8)


def test_distance_to_itself_is_zero(digits):
    own = statistics(digits.features)
    assert abs(frechet_distance(own, own)) < 1e-3 * np.trace(own.sigma)


def test_inception_score_limits():
    certain = np.tile(100 * np.eye(5, dtype=np.float32), (200, 1))
    assert inception_score(certain).mean == pytest.approx(5, rel=0.02)
    assert inception_score(np.zeros((100, 5), np.float32)).mean == pytest.approx(1)
