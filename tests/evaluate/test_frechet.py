"""Moments and Fréchet distances: closed forms, exact without each image; floors."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluate.scores import moments
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.frechet_scores import fit_line, floor_at
from diffusion.evaluate.scores.moments import Statistics, frechet_distance, statistics
from tests.helpers import features

normal = partial(features.normal, shift=1.0)


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40), st.integers(2, 12))
def test_projected_distance_equals_that_of_the_moments(seed, count, real_count, dimension):
    sample, real = normal(seed, count, dimension, scale=1.5), normal(seed + 1, real_count, dimension)
    want = frechet_distance(statistics(sample), statistics(real))
    assert ProjectedSample(sample, Target(real)).distance == pytest.approx(want, rel=1e-4, abs=1e-4)


def without_each(sample, target, rows):
    """Return the distance without each of these images, computed from scratch."""
    return np.array([ProjectedSample(np.delete(sample, i, axis=0), target).distance for i in rows])


@pytest.mark.parametrize(
    ("count", "real_count", "dimension", "repeats"),
    [*((count, real, 12, 1) for count in (10, 60) for real in (15, 200)), (3, 2, 12, 1), (20, 200, 32, 2)],
)
def test_leave_one_out_is_exact(count, real_count, dimension, repeats):
    sample = np.repeat(normal(0, count, dimension, scale=2.0), repeats, axis=0)
    target = Target(normal(1, real_count, dimension))
    want = without_each(sample, target, range(len(sample)))
    got = ProjectedSample(sample, target).leave_one_out()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got - got.mean(), want - want.mean(), atol=1e-5 * want.mean())


@pytest.mark.parametrize("decay", [0, 2, 8])
def test_leave_one_out_is_exact_around_n_equal_to_d(decay):
    """Spectra from flat to λ_k ~ k^−8, to 1 % of the spread of the distances."""
    rng, scale = np.random.default_rng(1), np.arange(1, 65.0) ** (-decay / 2)
    target = Target((scale * rng.normal(size=(256, 64))).astype(np.float32))
    for count in [3, 30, 58, *range(61, 68), 70, 100]:
        sample = (1.2 * scale * rng.normal(size=(count, 64))).astype(np.float32)
        rows = np.unique(np.linspace(0, count - 1, 20, dtype=int))
        want, got = without_each(sample, target, rows), ProjectedSample(sample, target).leave_one_out()
        assert np.abs(got[rows] - want).max() < 0.01 * np.std(want), count


def test_subset_distance_equals_its_own():
    sample, target, rows = normal(0, 50, 6), Target(normal(1, 80, 6)), np.array([3, 9, 11, 40, 41])
    whole = ProjectedSample(sample, target)
    assert whole.distance_of(rows) == pytest.approx(ProjectedSample(sample[rows], target).distance, rel=1e-7)


def test_line_fit_approaches_the_limit():
    sample, target = normal(0, 20_000, 12, scale=1.3), Target(normal(1, 20_000, 12))
    truth = 12 * (0.3**2 + 0.3**2)
    few = ProjectedSample(sample[:1000], target)
    assert abs(fit_line(few)[0] - truth) < abs(few.distance - truth)
    assert fit_line(few)[0] == pytest.approx(truth, rel=0.1)


def test_floor_is_measured_with_enough_images_and_extrapolated_from_fewer():
    heldout, real = normal(3, 2000, 16), normal(4, 4000, 16)
    own, want = Target(real), frechet_distance(statistics(heldout), statistics(real))
    assert floor_at(2000, heldout, own) == pytest.approx(want, rel=1e-4)
    assert floor_at(100, heldout, own) > want
    # Each image of a 16-dimensional Gaussian costs about D(D + 3)/4N, here 0.038 of 0.152 at N = 500.
    assert floor_at(2000, heldout[:500], own) == pytest.approx(want, abs=0.05)
    assert floor_at(10**7, heldout[:500], own) >= 0


@given(st.integers(0, 1000), st.integers(1, 100), st.sampled_from([1, 7, 512]), st.floats(0.01, 1000))
def test_moments_in_blocks_equal_those_of_all(seed, count, block, scale):
    numbers = normal(seed, count, 7, shift=3.0, scale=scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK", block)
        mean, scatter = moments.mean_and_scatter(numbers)
    x = numbers.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-10)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(scatter, centred.T @ centred, rtol=1e-10, atol=1e-10 * (x**2).sum())


def covariance(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 12))
def test_gaussian_distance_equals_the_closed_form(seed, size):
    rng = np.random.default_rng(seed)
    mu_a, mu_b = rng.normal(size=(2, size))
    sigma_a, sigma_b = covariance(rng, size), covariance(rng, size)
    closed = np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * sqrtm(sigma_a @ sigma_b).real)
    got = frechet_distance(Statistics(mu_a, sigma_a), Statistics(mu_b, sigma_b))
    assert got == pytest.approx(closed, rel=1e-8, abs=1e-8)
