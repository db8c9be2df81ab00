"""Fréchet distances: equal to torch-fidelity's, exact without each image, and their floors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.frechet_scores import fit_line, floor_at
from diffusion.evaluate.scores.torch_fidelity_scores import frechet_distance, statistics


def normal(seed, count, dimension, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(count, dimension)) + scale).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40), st.integers(2, 12))
def test_distance_equals_torch_fidelity(seed, count, real_count, dimension):
    sample, real = normal(seed, count, dimension, 1.5), normal(seed + 1, real_count, dimension)
    want = frechet_distance(statistics(sample), statistics(real))
    assert ProjectedSample(sample, Target(real)).distance == pytest.approx(want, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("count", "real_count"), [(10, 15), (10, 200), (60, 15), (60, 200), (3, 2)])
def test_leave_one_out_is_exact(count, real_count):
    sample, target = normal(0, count, 12, 2.0), Target(normal(1, real_count, 12))
    want = [ProjectedSample(np.delete(sample, i, axis=0), target).distance for i in range(count)]
    got = ProjectedSample(sample, target).leave_one_out()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got - got.mean(), want - np.mean(want), atol=1e-5 * np.mean(want))


@pytest.mark.parametrize("decay", [0, 1, 2, 4, 8])
def test_leave_one_out_is_exact_around_n_equal_to_d(decay):
    """Spectra from flat to λ_k ~ k^−8, to 1 % of the spread of the distances."""
    rng, scale = np.random.default_rng(1), np.arange(1, 65.0) ** (-decay / 2)
    target = Target((scale * rng.normal(size=(256, 64))).astype(np.float32))
    for count in [3, 10, 30, 36, 42, 58, *range(61, 68), 70, 100]:
        sample = (1.2 * scale * rng.normal(size=(count, 64))).astype(np.float32)
        rows = np.unique(np.linspace(0, count - 1, 20, dtype=int))
        want = [ProjectedSample(np.delete(sample, i, axis=0), target).distance for i in rows]
        got = ProjectedSample(sample, target).leave_one_out()
        assert np.abs(got[rows] - want).max() < 0.01 * np.std(want), count


def test_leave_one_out_is_exact_for_duplicates():
    sample, target = np.repeat(normal(0, 20, 32, 2.0), 2, axis=0), Target(normal(1, 200, 32))
    want = [ProjectedSample(np.delete(sample, i, axis=0), target).distance for i in range(40)]
    np.testing.assert_allclose(ProjectedSample(sample, target).leave_one_out(), want, rtol=1e-6)


def test_subset_distance_equals_its_own():
    sample, target, rows = normal(0, 50, 6), Target(normal(1, 80, 6)), np.array([3, 9, 11, 40, 41])
    whole = ProjectedSample(sample, target)
    assert whole.distance_of(rows) == pytest.approx(ProjectedSample(sample[rows], target).distance, rel=1e-7)


def test_equal_images_have_a_finite_distance():
    same = ProjectedSample(np.ones((5, 4), np.float32), Target(normal(1, 30, 4)))
    assert np.isfinite(same.distance)
    np.testing.assert_allclose(same.leave_one_out(), same.distance)


def test_line_fit_approaches_the_limit():
    sample, target = normal(0, 20_000, 12, 1.3), Target(normal(1, 20_000, 12))
    truth = 12 * (0.3**2 + 0.3**2)
    few = ProjectedSample(sample[:1000], target)
    assert abs(fit_line(few).limit - truth) < abs(few.distance - truth)
    assert fit_line(few).limit == pytest.approx(truth, rel=0.1)


def test_floor_is_measured_with_enough_images():
    reference, heldout = normal(2, 2000, 8), normal(3, 2000, 8)
    own = Target(reference)
    all_of_them = floor_at(2000, heldout, own)
    assert not all_of_them.extrapolated
    want = frechet_distance(statistics(heldout), statistics(reference))
    assert all_of_them.distance == pytest.approx(want, rel=1e-4)
    assert floor_at(100, heldout, own).distance > all_of_them.distance


def test_extrapolated_floor_is_near_the_measured_one():
    heldout, own = normal(3, 4000, 16), Target(normal(4, 4000, 16))
    guessed = floor_at(2000, heldout[:500], own)
    assert guessed.extrapolated
    assert guessed.num_images == 2000
    # Each image of a 16-dimensional Gaussian costs about D(D + 3)/4N, here 0.038 of 0.152 at N = 500.
    assert guessed.distance == pytest.approx(floor_at(2000, heldout, own).distance, abs=0.05)
    assert floor_at(10**7, heldout[:500], own).distance >= 0
