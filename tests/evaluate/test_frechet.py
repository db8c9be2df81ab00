"""Moments, Fréchet distances, floors and sampling errors: closed forms, exact without each image."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluate.scores import moments
from diffusion.evaluate.scores.frechet import ProjectedSample, Target, _singular_sums_without_each
from diffusion.evaluate.scores.frechet_scores import fit_line, floor_at
from diffusion.evaluate.scores.jackknife import Interactions, grouped, image_errors, root_sum_interactions
from diffusion.evaluate.scores.kernel_distance import Kernel, interactions
from diffusion.evaluate.scores.moments import Statistics, frechet_distance, statistics
from diffusion.protocol.card import GROUPS
from tests.helpers import digits_sweep

normal = partial(digits_sweep.normal, shift=1.0)


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


# Sampling errors by the jackknife.

NONE = Interactions(0.0, 0.0)


def test_variance_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    errors = image_errors((values.sum() - values) / 399, NONE)
    assert (errors**2).sum() == pytest.approx(values.var(ddof=1) / 400)


def test_equal_images_have_no_error():
    assert not image_errors(np.full(5, 2.0), Interactions(1.0, 1.0)).any()
    assert not grouped(np.zeros(5)).any()


def test_surplus_is_subtracted_down_to_a_minimum():
    without = np.random.default_rng(0).normal(size=50)
    whole = (image_errors(without, NONE) ** 2).sum()
    left = [(image_errors(without, Interactions(s * whole, 0.2 * whole)) ** 2).sum() for s in (0.3, 2.0)]
    assert left == pytest.approx([0.7 * whole, 0.2 * whole])
    assert (image_errors(without, Interactions(0.0, 5 * whole)) ** 2).sum() == pytest.approx(whole)


@pytest.mark.parametrize("count", [3, 99, 100, 101, 1000])
def test_groups_keep_variance_and_covariance(count):
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, count))
    a, b = a - a.mean(), 0.9 * (a - a.mean()) + 0.3 * (b - b.mean())
    ours, theirs = grouped(a), grouped(b)
    assert len(ours) == GROUPS
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(a))
    correlation = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
    assert correlation == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), abs=0.1)


@pytest.mark.parametrize(("count", "dimension"), [(100, 60), (60, 100), (80, 80), (300, 20)])
def test_corrected_variance_matches_random_matrices(count, dimension):
    """Σ √λ over 400 Gaussian scatters; the plain jackknife gives up to twice the variance."""
    rng, target = np.random.default_rng(0), Target(np.eye(2, dimension, dtype=np.float32))
    target.root = np.eye(dimension)
    sums, estimates = [], []
    for draw in range(400):
        projected = ProjectedSample(rng.normal(size=(count, dimension)).astype(np.float32), target)
        values = projected._spectrum.kept
        sums.append(np.sqrt(values).sum())
        if draw < 20:
            without = _singular_sums_without_each(projected._spectrum, count / (count - 1))
            found = root_sum_interactions(values, count - 1)
            estimates.append((image_errors(without, found) ** 2).sum())
            assert found.own > 0
            assert found.surplus > 0
    assert np.mean(estimates) == pytest.approx(np.var(sums), rel=0.25)


def test_kernel_interactions_equal_least_squares():
    """Compare with least squares over all pairs, written out."""
    sample = digits_sweep.normal(0, 12, 5)
    own = Kernel(sample, sample)
    pairs = list(itertools.combinations(range(12), 2))
    design = np.zeros((len(pairs), 12))
    for row, pair in enumerate(pairs):
        design[row, list(pair)] = 1
    values = np.array([own.whole[pair] for pair in pairs], float)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    want = 2 * (left**2).sum() / (len(pairs) - 12) / (12 * 11)
    found = interactions(own)
    assert found.surplus == found.own == pytest.approx(want, rel=1e-4)
