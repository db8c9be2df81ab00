"""The sequential paired t-test as a judge: its errors, its power, and its intervals."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.paired_test import PairedTest, outliers

SEQUENCES = 2000
TEST = PairedTest(3, 12)


def share_decided(test: PairedTest, differences: np.ndarray) -> float:
    """The share of sequences, the rows, that end with a decision."""
    return statistics.fmean([test.decide(row).kind != "no evidence" for row in differences.tolist()])


def gaussian(seed: int, effect: float = 0.0, last: int = 12) -> np.ndarray:
    return 40 * (np.random.default_rng(seed).normal(size=(SEQUENCES, last)) + effect)


def binomial(probability: float) -> float:
    """Three standard errors of a share of the sequences."""
    return 3 * math.sqrt(probability * (1 - probability) / SEQUENCES)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [(3, 12), (2, 5), (6, 6), (4, 20)])
def test_looking_after_every_pair_keeps_the_error(pairs: tuple[int, int]) -> None:
    share = share_decided(PairedTest(*pairs), gaussian(1, last=pairs[1]))
    assert share == pytest.approx(0.05, abs=binomial(0.05))


def test_heavy_tails_do_not_raise_the_error() -> None:
    differences = np.random.default_rng(2).standard_t(5, size=(SEQUENCES, 12))
    assert share_decided(TEST, differences) <= 0.05


def test_rare_failures_end_as_better_and_are_outliers_where_they_are_seen() -> None:
    """Equal means: a training in ten is worse by 10 deviations, the others are better by 10/9."""
    draw = np.random.default_rng(6)
    fails = draw.random((SEQUENCES, 12)) < 0.1
    differences = draw.normal(size=fails.shape) + np.where(fails, 10, -10 / 9)
    assert statistics.fmean(TEST.decide(row).kind == "better" for row in differences.tolist()) > 0.1
    single = fails.sum(axis=1) == 1
    found = [outliers(row) for row in differences[single].tolist()]
    places = fails[single].argmax(axis=1).tolist()
    assert statistics.fmean(place in one for one, place in zip(found, places, strict=True)) > 0.9
    false = statistics.fmean(bool(outliers(row)) for row in gaussian(7).tolist())
    assert false == pytest.approx(0.01, abs=binomial(0.01))


def test_several_changes_share_the_error() -> None:
    test = PairedTest(3, 12, 0.05 / 4)
    wrong = np.zeros(SEQUENCES, dtype=bool)
    for change in range(4):
        wrong |= [test.decide(row).kind != "no evidence" for row in gaussian(10 + change).tolist()]
    assert wrong.mean() <= 0.05 + binomial(0.05)


@pytest.mark.parametrize(
    ("effect", "by_12"), [(0.5, 0.229), (0.75, 0.468), (1.0, 0.724), (1.5, 0.975), (2.0, 1.0), (3.0, 1.0)]
)
def test_power_is_that_of_the_documentation(effect: float, by_12: float) -> None:
    share = share_decided(TEST, gaussian(3, effect))
    assert share == pytest.approx(by_12, abs=binomial(by_12) + 0.01)


def test_detectable_gap_is_found_in_four_of_five_cases() -> None:
    for pairs in (3, 7, 12):
        found = share_decided(TEST, gaussian(4, TEST.detectable(pairs))[:, :pairs])
        assert found == pytest.approx(0.8, abs=binomial(0.8) + 0.01)


def test_all_intervals_of_a_sequence_contain_the_truth() -> None:
    missed = [
        any(abs(one.mean - 40) > one.half for one in TEST.running(row)) for row in gaussian(5, 1.0).tolist()
    ]
    assert np.mean(missed) == pytest.approx(0.05, abs=binomial(0.05))


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=12, unique=True), st.sampled_from([1e-3, 1.0, 1e4])
)
def test_decision_follows_sign_and_scale_and_stays(differences: list[float], scale: float) -> None:
    found = TEST.decide(differences)
    other = TEST.decide([-scale * value for value in differences])
    swapped = {"better": "worse", "worse": "better"}
    assert (other.kind, other.pairs) == (swapped.get(found.kind, found.kind), found.pairs)
    assert (other.mean, other.half) == pytest.approx((-scale * found.mean, scale * found.half), rel=1e-6)
    if found.kind != "no evidence":
        assert TEST.decide([*differences, 1e6]) == found
        assert (found.mean < 0) == (found.kind == "better")


def test_without_a_look_there_is_no_evidence() -> None:
    assert TEST.decide([-5.0, -5.1]).kind == "no evidence"
    assert TEST.decide([-5.0, -5.1]).half == math.inf
    assert TEST.decide([0.0] * 12).kind == "no evidence"  # equal scores
    assert TEST.decide([1.0] * 3).kind == "worse"


def test_anytime_valid_test_has_less_power() -> None:
    """The Gaussian mixture of Wang & Ramdas 2023 (2310.03722), with a prior deviation of 2."""
    shares = []
    for effect in (0.0, 1.0, 1.5):
        values, count = gaussian(6, effect), np.arange(2, 13)
        mean = np.cumsum(values, axis=1)[:, 1:] / count
        variance = (np.cumsum(values**2, axis=1)[:, 1:] - count * mean**2) / (count - 1)
        square, kept = count * mean**2 / variance / (count - 1), 0.25 / (count + 0.25)
        evidence = np.sqrt(kept) * ((1 + square) / (1 + kept * square)) ** (count / 2)
        shares.append(np.mean((evidence >= 20).any(axis=1)))
    assert shares == pytest.approx([0.019, 0.505, 0.900], abs=0.03)
    assert shares[1] < 0.724 - 0.15
