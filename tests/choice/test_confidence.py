"""Gaps between two scores, or two groups of trainings of other seeds, and their confidence intervals."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from diffusion.choice.confidence import (
    CONFIDENCE,
    NORMAL,
    Gap,
    describe_comparison,
    deviation_of,
    errors_of,
    gap,
    group_gap,
    interval,
    interval_of,
    mean_interval,
    mean_of,
    share_noise,
    student,
)
from diffusion.protocol.grid import SAMPLING_VERSION
from tests.helpers.scores_document import certain_cell, chance

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"


def cell(value, errors=None, **card):
    """Return a cell with a kernel distance and optional errors."""
    return certain_cell(KD, value, errors=errors, **{"steps": 5, "eta": 0.0, **card})


@pytest.mark.parametrize(("card", "shared"), [
    ({"steps": 10, "eta": 1.0, "nfe": 10}, True),
    ({"model_sha256": "b" * 64}, True),
    ({"sampler": "heun", "sampler_options": "{}", "sampling_plugins": "c"}, True),
    ({"guidance": 1.0, "guidance_rule": "apg", "sampling_version": SAMPLING_VERSION + 1}, True),
    ({"guidance": 1.0, "guidance_rule": "cfg-zero", "clip": False}, True),
    ({"sampling_version": SAMPLING_VERSION + 1}, False),
    ({"seed": 1}, False),
    ({"num_images": 1000}, False),
])  # fmt: skip
def test_cells_of_one_seed_and_protocol_share_noise(card, shared):
    assert share_noise(cell(1.0), cell(1.0, **card)) is shared
    assert not share_noise(*[cell(1.0, seed=None)] * 2)


def test_shared_errors_cancel_and_independent_errors_add():
    draw = np.random.default_rng(0)
    common, own, other = draw.normal(size=(3, 100)) / 10
    a, b = cell(3.0, common + 0.1 * own), cell(2.8, common + 0.1 * other, steps=10)
    paired = gap(a, b, KD)
    assert paired.between == "pairs of images"
    assert paired.half == pytest.approx(student(99) * np.linalg.norm(0.1 * (own - other)), rel=1e-5)
    assert paired.value == pytest.approx(0.2)
    independent = gap(a, cell(2.8, common + 0.1 * other, seed=1), KD)
    assert independent.between == "independent images"
    both = np.hypot(*(np.linalg.norm(errors_of(one, KD)) for one in (a, b)))
    assert independent.half == pytest.approx(NORMAL * both, rel=1e-5)
    assert stats.norm.ppf((1 + CONFIDENCE) / 2) == pytest.approx(NORMAL, abs=1e-6)
    assert (paired.is_significant, independent.is_significant) == (False, False)
    assert gap(cell(3.0, common), cell(2.8, common), KD).is_significant  # equal errors cancel exactly
    assert describe_comparison([paired, None]) == "paired by image"
    assert describe_comparison([paired, independent]) == "paired by image or of independent images"
    assert describe_comparison([None]) == ""


def test_interval_of_a_positive_score_is_asymmetric_and_above_zero():
    low, high = interval(10.0, 2.0, positive=True)
    assert low * high == pytest.approx(100)
    assert high - 10 > 10 - low > 0
    assert interval(1e6, 1.0, positive=True) == pytest.approx(interval(1e6, 1.0), rel=1e-11)
    assert interval(0.1, 1.0, positive=True) == interval(0.1, 1.0)


def test_gap_of_the_excess_excludes_the_shared_floor():
    errors = np.full(100, 0.1)
    two = []
    for value in (30.0, 28.5):
        one = certain_cell(FD, value, errors=errors, steps=5, eta=0.0)
        one.scores.update({"excess": value - 10, "excess_low": value - 110, "excess_high": value + 90})
        two.append(one)
    found = gap(*two, "excess")
    assert found == Gap(1.5, 0.0, "pairs of images")
    two[1].card["seed"] = 1
    assert gap(*two, "excess").half == pytest.approx(np.sqrt(2) * NORMAL, rel=1e-6)


VALUES = st.lists(st.floats(0.1, 10).map(lambda value: round(value, 3)), min_size=2, max_size=6)


def cells(values, errors=None):
    return [cell(value, errors) for value in values]


@given(VALUES, VALUES)
@example([1.0, 1.0], [1.5, 1.5])
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


@pytest.mark.slow
@given(VALUES)
def test_mean_interval_uses_the_student_quantile(values):
    low, high = mean_interval(cells(values), KD)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)
    assert mean_of(cells(values), KD) == pytest.approx(np.mean(values))
    assert deviation_of(cells(values), KD) == pytest.approx(np.std(values, ddof=1), abs=1e-12)


@given(VALUES)
def test_single_run_is_compared_as_a_further_draw_of_the_group(values):
    """Half of Student's prediction interval."""
    found, count = group_gap(cells([1.0]), cells(values), KD), len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / count)
    assert (found.value, found.half) == pytest.approx((1 - np.mean(values), half), abs=1e-9)


def test_gap_of_two_single_runs_uses_the_image_errors():
    a, b = cells([1.0], chance(0, 0.1)), cells([2.0], chance(1, 0.1))
    assert group_gap(a, b, KD) == gap(a[0], b[0], KD)
    assert mean_interval(a, KD) == (a[0].scores[f"{KD}_low"], a[0].scores[f"{KD}_high"])
    assert group_gap(cells([1.0]), b, KD) is None
    assert interval_of(cell(1.0), KD) is deviation_of(a, KD) is None
