import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.choice.confidence import deviation_of, gap, group_gap, mean_interval, mean_of
from tests.helpers.scores_document import certain_cell, chance

KD = "kd_effnet_lite0_64"
VALUES = st.lists(st.floats(0.1, 10).map(lambda value: round(value, 3)), min_size=2, max_size=6)


def cells(values, errors=None):
    return [certain_cell(KD, value, errors=errors, steps=5, eta=0.0) for value in values]


@given(VALUES, VALUES)
def test_gap_of_two_groups_matches_welchs_interval(a, b):
    """The reference is the confidence interval of SciPy's Welch test."""
    found = group_gap(cells(a), cells(b), KD)
    assert found.between == "trainings"
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    if np.var(a) + np.var(b) < 1e-9:
        assert found.half == pytest.approx(0, abs=1e-3)
        return
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.half == pytest.approx((interval.high - interval.low) / 2, rel=1e-6)


@given(VALUES)
def test_mean_interval_uses_the_student_quantile(values):
    low, high = mean_interval(cells(values), KD)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)
    assert mean_of(cells(values), KD) == pytest.approx(np.mean(values))
    assert deviation_of(cells(values), KD) == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_single_run_is_compared_as_a_further_draw_of_the_group():
    """A further draw is significant in 5 % of cases, for every group size."""
    draw = np.random.default_rng(0)
    for count in (2, 3, 8):
        values = draw.normal(5, 1, size=(4000, count + 1))
        significant = sum(
            group_gap(cells(row[:1]), cells(row[1:]), KD).is_significant for row in values[:1000]
        )
        assert significant / 1000 == pytest.approx(0.05, abs=0.02)


def test_gap_of_two_single_runs_uses_the_image_errors():
    a, b = cells([1.0], chance(0, 0.1)), cells([2.0], chance(1, 0.1))
    assert group_gap(a, b, KD) == gap(a[0], b[0], KD)
    assert mean_interval(a, KD) == (a[0].scores[f"{KD}_low"], a[0].scores[f"{KD}_high"])
    assert group_gap(cells([1.0]), cells([2.0]), KD) is None
    assert deviation_of(a, KD) is None


def test_gap_between_groups_of_equal_scores_has_half_width_0():
    found = group_gap(cells([1.0, 1.0]), cells([1.5, 1.5]), KD)
    assert (found.value, found.half, found.is_significant) == (-0.5, 0.0, True)
