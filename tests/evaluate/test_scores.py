"""Fréchet distance and Inception score by closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluate.features.extract import extract
from diffusion.evaluate.scores.torch_fidelity_scores import (
    Statistics,
    frechet_distance,
    inception_score,
    statistics,
)
from tests.helpers.digits_sweep import effnet, real_digits


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
