"""Power-function averages: their profiles against the paper, a numerical integral, and least squares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.model.posthoc_ema import correlation, fit_profile
from diffusion.model.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, gamma_of, newest_weight, sigma_rel_of

WIDTHS = st.floats(MIN_SIGMA_REL, MAX_SIGMA_REL)


def profile(width: float, end: float, times: np.ndarray) -> np.ndarray:
    """The profile after `end` steps, at times of (0, end]."""
    gamma = gamma_of(width)
    return np.where(times <= end, (gamma + 1) * (times / end) ** gamma / end, 0.0)


def discrete(width: float, steps: int) -> list[float]:
    """What the weights after each of `steps` steps count in the end, by the update itself."""
    parts: list[float] = []
    for step in range(1, steps + 1):
        share = newest_weight(width, step)
        parts = [part * (1 - share) for part in parts] + [share]
    return parts


def test_the_two_widths_of_the_paper_have_its_exponents() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@given(WIDTHS)
def test_a_width_and_its_exponent_say_the_same(width: float) -> None:
    assert sigma_rel_of(gamma_of(width)) == pytest.approx(width, rel=1e-12)


@given(WIDTHS, st.integers(1, 60))
def test_each_step_counts_the_profiles_integral_over_it(width: float, steps: int) -> None:
    power = gamma_of(width) + 1
    edges = (np.arange(steps + 1) / steps) ** power
    assert discrete(width, steps) == pytest.approx(np.diff(edges), abs=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_width_is_the_profiles_standard_deviation(width: float) -> None:
    steps = 4000
    parts, times = np.array(discrete(width, steps)), (np.arange(steps) + 0.5) / steps
    mean = float(parts @ times)
    assert math.sqrt(float(parts @ (times - mean) ** 2)) == pytest.approx(width, rel=1e-3)


@given(WIDTHS, WIDTHS, st.floats(0.3, 1), st.floats(0.3, 1))
def test_products_of_profiles_are_their_integrals(a: float, b: float, end_a: float, end_b: float) -> None:
    least = min(end_a, end_b)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    times = least * (nodes + 1) / 2
    integral = float(weights @ (profile(a, end_a, times) * profile(b, end_b, times))) * least / 2
    values = (np.array([x]) for x in (end_a, gamma_of(a), end_b, gamma_of(b)))
    assert correlation(*values)[0] == pytest.approx(integral, rel=1e-5, abs=1e-9)


def test_what_was_tracked_is_taken_as_it_is() -> None:
    steps, widths = [step for step in range(10, 2561, 10) for _ in range(2)], [0.05, 0.1] * 256
    for place, width in ((-2, 0.05), (-1, 0.1)):
        fit = fit_profile(steps, widths, width)
        alone = np.zeros(len(steps))
        alone[place] = 1
        assert fit.parts == pytest.approx(alone, abs=1e-8)
        assert fit.error < 1e-6


@pytest.mark.parametrize("width", [0.04, 0.075, 0.15, 0.2])
def test_the_fit_is_a_numerical_least_squares(width: float) -> None:
    steps, widths = [step for step in range(100, 801, 100) for _ in range(2)], [0.05, 0.1] * 8
    fit = fit_profile(steps, widths, width)
    times = np.arange(0.25, 800, 0.5)
    columns = np.stack([profile(w, s, times) for w, s in zip(widths, steps, strict=True)], axis=1)
    wanted = profile(width, 800, times)
    parts = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    assert fit.parts == pytest.approx(parts / parts.sum(), abs=2e-2)
    left = np.linalg.norm(columns @ fit.parts - wanted) / np.linalg.norm(wanted)
    assert fit.error == pytest.approx(left, rel=0.05)


def test_more_snapshots_fit_better() -> None:
    errors = [
        fit_profile(
            [s for s in range(every, 3201, every) for _ in range(2)], [0.05, 0.1] * (3200 // every), 0.2
        ).error
        for every in (400, 200, 100, 50)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.002
