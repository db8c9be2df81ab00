"""Moments, statistics, Fréchet distance and Inception score by closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluate.features.extractors import extract
from diffusion.evaluate.scores import moments, torch_fidelity_scores
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
@given(st.integers(0, 1000), st.integers(1, 100), st.sampled_from([1, 7, 512]), st.floats(0.01, 1000))
def test_moments_in_blocks_equal_those_of_all(seed, count, block, scale):
    features = normal(seed, count, 7, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK", block)
        mean, scatter = moments.mean_and_scatter(features)
    x = features.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-10)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(scatter, centred.T @ centred, rtol=1e-10, atol=1e-10 * (x**2).sum())


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
