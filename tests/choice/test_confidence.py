import re

import numpy as np
import pytest

from diffusion.choice.confidence import (
    CONFIDENCE,
    NORMAL,
    Gap,
    describe_comparison,
    gap,
    interval,
    interval_of,
    share_noise,
    student,
)
from diffusion.choice.gate import decide
from diffusion.protocol.scores import ImageScores
from tests.helpers.scores_document import CARD, certain_cell

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"


def cell(value, errors=None, **card):
    """Return a cell with a kernel distance and optional errors."""
    return certain_cell(KD, value, errors=errors, **{"steps": 5, "eta": 0.0, **card})


def test_student_quantile_matches_scipy():
    from scipy.stats import t

    assert t.ppf((1 + CONFIDENCE) / 2, 10**9) == pytest.approx(NORMAL, abs=1e-6)
    for freedom in (1, 1.5, 4, 9, 29, 99):
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize(("card", "shared"), [
    ({"steps": 10, "eta": 1.0, "nfe": 10}, True),
    ({"model_sha256": "b" * 64}, True),
    ({"seed": 1}, False),
    ({"num_images": 1000}, False),
    ({"classes": "3"}, False),
    ({"seed": None}, False),
])  # fmt: skip
def test_cells_of_one_seed_and_protocol_share_noise(card, shared):
    assert share_noise(cell(1.0), cell(1.0, **card)) is shared
    assert share_noise(cell(1.0, seed=None), cell(1.0, seed=None)) is False


def test_images_without_a_seed_share_no_noise():
    unknown = {key: value for key, value in CARD.items() if key != "seed"}
    images = ImageScores(scores={FD: 1.0, KD: 1.0}, card=unknown)
    assert not share_noise(images, images)


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
    assert independent.half == pytest.approx(NORMAL * np.sqrt(2), rel=0.15)
    assert (paired.is_significant, independent.is_significant) == (False, False)
    assert gap(cell(3.0, common), cell(2.8, common), KD).is_significant  # equal errors cancel exactly
    assert describe_comparison([paired, None]) == "paired by image"
    assert describe_comparison([paired, independent]) == "paired by image or of independent images"
    assert describe_comparison([None]) == ""


@pytest.mark.parametrize(("other", "expected"), [(10.0, False), (13.9, False), (14.5, True), (5.5, True)])
def test_half_widths_of_independent_noise_add_in_quadrature(other, expected):
    """Two half-widths of 3 give 4.24 for the gap, even if the errors are equal."""
    errors = np.full(100, 3 / NORMAL / 10)
    a, b = cell(10.0, errors), cell(other, errors, seed=1)
    assert gap(a, b, KD).is_significant is expected
    assert gap(b, a, KD).is_significant is expected


def test_interval_of_a_positive_score_is_asymmetric_and_above_zero():
    low, high = interval(10.0, 2.0, positive=True)
    assert low * high == pytest.approx(100)
    assert high - 10 > 10 - low > 0
    assert interval(1e6, 1.0, positive=True) == pytest.approx(interval(1e6, 1.0), rel=1e-11)
    assert interval(0.1, 1.0, positive=True) == interval(0.1, 1.0)


def test_score_without_an_interval_has_no_gap():
    assert gap(cell(1.0), cell(2.0, np.ones(100)), KD) is None
    assert interval_of(cell(1.0), KD) is None


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


@pytest.mark.parametrize(("card", "pattern"), [
    ({}, r"0.2 \(a\) against version 7's 0.25 \(a\), more than what chance does \(±.*, paired by image\)"),
    ({"seed": 1}, "not comparable"),
])  # fmt: skip
def test_gate_reason_contains_the_significance(card, pattern):
    errors = np.random.default_rng(0).normal(size=100) / 100
    champion = {"a": cell(0.25, errors)}
    candidate = {"a": cell(0.2, 0.9 * errors, model_sha256="b" * 64, **card)}
    verdict = decide(candidate, champion, "version 7")
    assert verdict.better is not bool(card)
    assert re.search(pattern, verdict.reason)
