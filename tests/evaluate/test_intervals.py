import numpy as np
import pytest

from diffusion.evaluate.scores import kernel
from diffusion.evaluate.scores.frechet import Projected, Target
from diffusion.evaluate.scores.intervals import Interval, bootstrap, interval_of, told_apart
from diffusion.protocol.scores import Scored


def test_of_a_mean_it_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    without_each = (values.sum() - values) / 399
    low, high = bootstrap(values.mean(), without_each, 4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_is_the_same_again():
    without_each = np.random.default_rng(0).normal(size=50)
    assert bootstrap(1.0, without_each, 100) == bootstrap(1.0, without_each, 100)


@pytest.mark.parametrize(("count", "dimension"), [(60, 100), (150, 100), (400, 20)])
def test_it_is_as_wide_as_scores_of_other_images_scatter(count, dimension):
    """With fewer images than features, about as many, and more; it may be too wide, never too narrow."""
    rng, target = np.random.default_rng(0), None
    reference = rng.normal(size=(2000, dimension)).astype(np.float32)
    target = Target(reference)
    scatter = np.linspace(0.5, 2, dimension)
    widths, values = {"fd": [], "kd": []}, {"fd": [], "kd": []}
    for number in range(60):
        x = (scatter * rng.normal(size=(count, dimension))).astype(np.float32)
        projected, without = Projected(x, target), kernel.leave_one_out(kernel.kernels(x, reference))
        values["fd"].append(projected.distance)
        values["kd"].append((count - 1) * without.mean() - (count - 2) * without.mean())
        if number < 10:
            for name, each in (("fd", projected.leave_one_out()), ("kd", without)):
                low, high = bootstrap(0.0, each, 400)
                widths[name].append((high - low) / (2 * 1.96))
    for name, found in values.items():
        assert 0.75 < np.mean(widths[name]) / np.std(found, ddof=1) < 2, name


def test_repeating_images_would_overstate_the_spread():
    """Why the plain bootstrap is not used: with fewer images than features it is far too wide."""
    rng = np.random.default_rng(0)
    target = Target(rng.normal(size=(2000, 100)).astype(np.float32))
    samples = [rng.normal(size=(60, 100)).astype(np.float32) for _ in range(40)]
    truth = np.std([Projected(x, target).distance for x in samples])
    first = Projected(samples[0], target)
    plain = np.std([first.distance_of(rng.integers(60, size=60)) for _ in range(100)])
    low, high = bootstrap(0.0, first.leave_one_out(), 400)
    assert (high - low) / (2 * 1.96) < plain
    assert plain > 1.5 * truth


def test_the_excess_is_as_uncertain_as_its_distance():
    scores = {"fid": 30.0, "fid_low": 28.0, "fid_high": 33.0, "floor": 10.0, "excess": 20.0, "is": 2.0}
    card = {"extractor": "inception-v3-compat", "num_images": 10}
    cell = Scored(scores={**scores, "kid": 1.0}, card=card)
    assert interval_of(cell, "fid") == (28, 33)
    assert interval_of(cell, "excess") == (18, 23)
    assert interval_of(cell, "is") is None


@pytest.mark.parametrize(("other", "apart"), [(10.0, False), (13.9, False), (14.5, True), (5.5, True)])
def test_a_gap_counts_against_both_intervals(other, apart):
    """Halves of 3 and of about 3 make one of 4.24 for the gap."""
    a, b = Interval(7, 13), Interval(other - 3, other + 3)
    assert told_apart(10, a, other, b) is apart
    assert told_apart(other, b, 10, a) is apart
