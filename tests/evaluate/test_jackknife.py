"""Sampling errors of scores, by closed forms."""

import itertools

import numpy as np
import pytest

from diffusion.evaluate.scores.frechet import ProjectedSample, Target, _singular_sums_without_each
from diffusion.evaluate.scores.jackknife import Interactions, grouped, image_errors, root_sum_interactions
from diffusion.evaluate.scores.kernel_distance import Kernel, interactions
from diffusion.protocol.card import GROUPS

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
    features = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    own = Kernel(features, features)
    pairs = list(itertools.combinations(range(12), 2))
    design = np.zeros((len(pairs), 12))
    for row, pair in enumerate(pairs):
        design[row, list(pair)] = 1
    values = np.array([own.whole[pair] for pair in pairs], float)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    want = 2 * (left**2).sum() / (len(pairs) - 12) / (12 * 11)
    found = interactions(own)
    assert found.surplus == found.own == pytest.approx(want, rel=1e-4)
