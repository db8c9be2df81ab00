"""Power-function EMA: profiles against their integrals and least squares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.model.posthoc_ema import fit_profile, gamma_of, newest_weight, sigma_rel_of
from diffusion.system.limits import MAX_SIGMA_REL, MIN_SIGMA_REL

SIGMA_RELS = st.floats(MIN_SIGMA_REL, MAX_SIGMA_REL)


def profile(sigma_rel: float, end: float, times: np.ndarray) -> np.ndarray:
    """Return the EMA profile after `end` steps, at times in (0, end]."""
    gamma = gamma_of(sigma_rel)
    return np.where(times <= end, (gamma + 1) * (times / end) ** gamma / end, 0.0)


def discrete_profile(sigma_rel: float, steps: int) -> list[float]:
    """Return the weight of each step in the average after `steps` updates."""
    weights: list[float] = []
    for step in range(1, steps + 1):
        newest = newest_weight(sigma_rel, step)
        weights = [weight * (1 - newest) for weight in weights] + [newest]
    return weights


@given(SIGMA_RELS)
def test_sigma_rel_of_inverts_gamma_of(sigma_rel: float) -> None:
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


@given(SIGMA_RELS, st.integers(1, 60))
def test_step_weights_are_integrals_of_profile(sigma_rel: float, steps: int) -> None:
    power = gamma_of(sigma_rel) + 1
    edges = (np.arange(steps + 1) / steps) ** power
    assert discrete_profile(sigma_rel, steps) == pytest.approx(np.diff(edges), abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_sigma_rel_is_standard_deviation_of_profile(sigma_rel: float) -> None:
    steps = 4000
    weights, times = np.array(discrete_profile(sigma_rel, steps)), (np.arange(steps) + 0.5) / steps
    mean = float(weights @ times)
    assert math.sqrt(float(weights @ (times - mean) ** 2)) == pytest.approx(sigma_rel, rel=1e-3)


def test_tracked_profile_is_reproduced() -> None:
    steps, sigma_rels = [step for step in range(10, 2561, 10) for _ in range(2)], [0.05, 0.1] * 256
    for index, sigma_rel in ((-2, 0.05), (-1, 0.1)):
        fit = fit_profile(steps, sigma_rels, sigma_rel)
        one_hot = np.zeros(len(steps))
        one_hot[index] = 1
        assert fit.parts == pytest.approx(one_hot, abs=1e-8)
        assert fit.error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.04, 0.075, 0.15, 0.2])
def test_fit_matches_numerical_least_squares(sigma_rel: float) -> None:
    steps, sigma_rels = [step for step in range(100, 801, 100) for _ in range(2)], [0.05, 0.1] * 8
    fit = fit_profile(steps, sigma_rels, sigma_rel)
    times = np.arange(0.25, 800, 0.5)
    columns = np.stack([profile(w, s, times) for w, s in zip(sigma_rels, steps, strict=True)], axis=1)
    target = profile(sigma_rel, 800, times)
    parts = np.linalg.lstsq(columns, target, rcond=None)[0]
    assert fit.parts == pytest.approx(parts / parts.sum(), abs=2e-2)
    residual = np.linalg.norm(columns @ fit.parts - target) / np.linalg.norm(target)
    assert fit.error == pytest.approx(residual, rel=0.05)
