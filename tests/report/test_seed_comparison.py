"""A training among other seeds of its setting: mean, spread, rank, and what is left out."""

import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report.seed_comparison import compare_seeds, excluded_seeds, seeds_content
from tests.helpers.scores_document import document

KD = "kd_effnet_lite0_64"
VALUES = st.lists(st.integers(10, 900), min_size=2, max_size=8)


def of_seed(seed, *values, setting="a" * 16, steps=(10, 5), **card):
    """Scores of a training with one cell per value; the first is 10 steps, η = 0."""
    kernel = {(count, 0.0): value for count, value in zip(steps, values, strict=False)}
    one = document(kernel, model_sha256=f"{seed}".rjust(64, "0"), **card)
    return ScoresDocument(**{**dict(one), "training": {"setting": setting, "seed": seed}})


def kernel(found):
    return next(one for one in found if one.metric == KD)


@given(VALUES)
def test_mean_spread_and_rank_include_all_seeds(thousandths):
    values = [value / 1000 for value in thousandths]
    own, *others = [of_seed(seed, value) for seed, value in enumerate(values)]
    one = kernel(compare_seeds(own, others))
    assert one.values == dict(enumerate(values))
    assert one.mean == pytest.approx(statistics.fmean(values))
    assert one.deviation == pytest.approx(statistics.stdev(values))
    assert one.place == 1 + sum(value < values[0] for value in values)


@given(st.floats(0.001, 0.01), st.integers(-400, 400))
def test_outlier_test_follows_student_t(spread, tenths):
    """With two others the Student quantile is 12.706, and the spread of a third is √(1 + 1/2)."""
    away, half = tenths / 10, 12.7062 * 1.5**0.5
    assume(abs(abs(away) - half) > 0.05)
    others = [of_seed(1, 0.5 - spread / 2**0.5), of_seed(2, 0.5 + spread / 2**0.5)]
    one = kernel(compare_seeds(of_seed(0, 0.5 + away * spread), others))
    assert one.is_apart == (abs(away) > half)


def test_other_settings_and_protocols_are_ignored():
    own = of_seed(0, 0.2)
    others = [
        of_seed(1, 0.3),
        of_seed(1, 0.9),  # older
        of_seed(0, 0.8),  # by another torch
        of_seed(2, 0.7, num_images=1000),
        of_seed(3, 0.6, steps=(20,)),
        of_seed(4, 0.5, setting="b" * 16),
    ]
    assert kernel(compare_seeds(own, others)).values == {0: 0.2, 1: 0.3}
    assert excluded_seeds(own, others) == {2: ["num_images"], 3: []}
    assert compare_seeds(own, others[3:]) == []
    assert seeds_content(own, others[3:]) is None
    assert compare_seeds(document(), others) == []


def test_drawing_needs_two_numbers_of_steps():
    assert seeds_content(of_seed(0, 0.2), [of_seed(1, 0.3)])["drawing"] is None
    content = seeds_content(of_seed(0, 0.2, 0.4), [of_seed(1, 0.3, 0.5)])
    assert content["drawing"].count("fill-opacity: 0.12") == 1  # the band of the spread
    assert [row["place"] for row in content["rows"]] == ["1 of 2"] * 3
