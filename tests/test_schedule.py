"""The forward process against the papers' closed forms, for every T, S and spacing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import UsageError
from diffusion.schedule import (
    Schedule,
    check_timesteps,
    predict_eps,
    predict_x0,
    q_sample,
    spaced_timesteps,
)
from tests import papers

NAMES = st.sampled_from(["linear", "cosine"])
SPACINGS = st.sampled_from(["uniform", "quadratic", "trailing"])
TIMESTEPS = st.integers(2, 1200)


@st.composite
def spaced(draw: st.DrawFn) -> tuple[Schedule, list[int]]:
    """A full schedule and some of its timesteps by a named spacing."""
    timesteps = draw(TIMESTEPS)
    steps = draw(st.integers(1, timesteps))
    return Schedule.named(draw(NAMES), timesteps), spaced_timesteps(draw(SPACINGS), steps, timesteps)


@settings(deadline=None)
@given(TIMESTEPS)
def test_linear_alphas_cumprod_are_those_of_ddpm(timesteps):
    expected = np.cumprod(1 - papers.ddpm_betas(timesteps))
    assert np.allclose(Schedule.named("linear", timesteps).alphas_cumprod, expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(TIMESTEPS)
def test_cosine_alphas_cumprod_are_those_of_iddpm_until_beta_is_clipped(timesteps):
    schedule = Schedule.named("cosine", timesteps)
    clipped = (schedule.betas > 0.999 - 1e-9).numpy()
    free = ~np.maximum.accumulate(clipped)
    expected = papers.cosine_alpha_bar(timesteps)
    assert np.allclose(schedule.alphas_cumprod[free], expected[free], rtol=1e-9, atol=0)
    assert clipped.sum() <= max(1, 0.01 * timesteps) or timesteps < 10
    assert bool((schedule.betas <= 0.999 + 1e-9).all())


def test_the_published_betas_of_a_thousand_steps():
    schedule = Schedule.named("linear", 1000)
    assert float(schedule.betas[0]) == pytest.approx(1e-4, rel=1e-9)
    assert float(schedule.betas[-1]) == pytest.approx(0.02, rel=1e-9)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(4.0358e-5, rel=1e-3)


@settings(deadline=None)
@given(spaced())
def test_tables_are_finite_float64_and_ordered(case):
    schedule = case[0].spaced(case[1])
    for name in ("alphas_cumprod", "alphas_cumprod_prev", "betas", "posterior_variance"):
        table = getattr(schedule, name)
        assert table.dtype == torch.float64
        assert len(table) == len(case[1])
        assert bool((table >= 0).all())
        assert bool((table <= 1).all())
    assert bool(torch.isfinite(schedule.posterior_log_variance_clipped).all())
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    assert bool((schedule.posterior_variance <= schedule.betas).all())
    assert float(schedule.alphas_cumprod_prev[0]) == 1


@settings(deadline=None)
@given(spaced())
def test_a_spaced_process_keeps_alpha_bar_and_original_timesteps(case):
    full, timesteps = case
    schedule = full.spaced(timesteps)
    assert torch.equal(schedule.alphas_cumprod, full.alphas_cumprod[timesteps])
    assert schedule.timesteps.tolist() == timesteps
    assert np.allclose(torch.cumprod(1 - schedule.betas, 0), schedule.alphas_cumprod, rtol=1e-9, atol=1e-14)


def test_the_full_spacing_is_the_process_itself():
    full = Schedule.named("cosine", 100)
    assert torch.equal(full.spaced(range(100)).betas, full.betas)
    expected = 1 - full.alphas_cumprod / torch.cat([torch.ones(1), full.alphas_cumprod[:-1]])
    assert torch.allclose(full.betas, expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(spaced(), st.data())
def test_the_posterior_is_bayes_rule(case, data):
    schedule = case[0].spaced(case[1])
    i = data.draw(st.integers(0, len(schedule) - 1))
    previous = float(schedule.alphas_cumprod_prev[i])
    alpha = float(schedule.alphas_cumprod[i] / previous)
    _, variance = papers.bayes_posterior(alpha, previous, np.zeros(1), np.zeros(1))
    assert float(schedule.posterior_variance[i]) == pytest.approx(variance, rel=1e-6, abs=1e-15)


@settings(deadline=None)
@given(spaced(), st.integers(0, 2**31), st.data())
def test_predict_x0_and_eps_undo_q_sample(case, seed, data):
    schedule = case[0].spaced(case[1])
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(schedule) - 1), min_size=1, max_size=4)))
    source = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(len(index), 2, 3, 3, generator=source, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x_0.shape, generator=source, dtype=torch.float64)
    x_t = q_sample(schedule, x_0, index, noise)
    # Dividing by a tiny √ᾱ takes digits from any arithmetic.
    digits = 1e-10 if float(schedule.alphas_cumprod[index].min()) > 1e-10 else 1e-7
    assert torch.allclose(predict_x0(schedule, x_t, index, noise), x_0, rtol=0, atol=digits)
    assert torch.allclose(predict_eps(schedule, x_t, index, x_0), noise, rtol=0, atol=1e-10)


@settings(deadline=None)
@given(spaced(), st.data())
def test_q_sample_has_the_marginal_of_its_timestep(case, data):
    schedule = case[0].spaced(case[1])
    i = data.draw(st.integers(0, len(schedule) - 1))
    alpha_bar = float(schedule.alphas_cumprod[i])
    x_0, noise = torch.tensor([0.3, -1.7], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
    x_t = q_sample(schedule, x_0, torch.tensor([i]), noise)
    assert float(x_t) == pytest.approx(alpha_bar**0.5 * 0.3 - (1 - alpha_bar) ** 0.5 * 1.7, rel=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing"])
@pytest.mark.parametrize("timesteps", [2, 3, 7, 10, 97, 100, 1000])
def test_every_step_count_gives_exactly_so_many_distinct_steps(spacing, timesteps):
    for steps in range(1, timesteps + 1):
        chosen = spaced_timesteps(spacing, steps, timesteps)
        assert len(chosen) == steps
        assert chosen[0] >= 0
        assert chosen[-1] == timesteps - 1
        assert all(a < b for a, b in itertools.pairwise(chosen))
        if spacing != "trailing" and steps > 1:
            assert chosen[0] == 0


@settings(deadline=None)
@given(st.integers(2, 4000), st.data())
def test_uniform_and_trailing_are_evenly_spread(timesteps, data):
    steps = data.draw(st.integers(2, timesteps))
    for spacing, gap in (("uniform", (timesteps - 1) / (steps - 1)), ("trailing", timesteps / steps)):
        gaps = np.diff(spaced_timesteps(spacing, steps, timesteps))
        assert abs(gaps - gap).max() < 1 + 1e-9


def test_quadratic_is_quadratic_where_it_can_be():
    chosen = spaced_timesteps("quadratic", 10, 1000)
    assert chosen == [round(999 * (i / 9) ** 2) for i in range(10)]


@settings(deadline=None)
@given(spaced())
def test_the_largest_eta_is_where_the_direction_vanishes(case):
    schedule = case[0].spaced(case[1])
    largest = schedule.largest_eta()
    assert largest >= 1
    if len(schedule) > 1:
        left = 1 - schedule.alphas_cumprod_prev - largest**2 * schedule.posterior_variance
        assert float(left[1:].min()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [0, -1, 11])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing"])
def test_step_counts_that_do_not_fit_are_refused(steps, spacing):
    with pytest.raises(UsageError, match=f"{steps} sampling steps do not fit: give 1 to 10"):
        spaced_timesteps(spacing, steps, 10)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], "increase"),
        ([3, 3, 9], "increase strictly"),
        ([5, 2, 9], "increase strictly"),
        ([-1, 9], "0 … 9"),
        ([0, 8], "end there"),
        ([0, 10], "end there"),
    ],
)
def test_bad_lists_of_timesteps_are_refused(chosen, message):
    with pytest.raises(UsageError, match=message):
        check_timesteps(chosen, 10)
    assert check_timesteps([0, 4, 9], 10) == [0, 4, 9]
