"""The forward process against the papers' closed forms, for every T, S and spacing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import build_process
from diffusion.protocol.spacing import check_timesteps, spaced_timesteps
from diffusion.sample.sampling_steps import max_eta
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.trajectories import grid_of, process_of

NAMES = st.sampled_from(["linear", "cosine"])
SPACINGS = st.sampled_from(["uniform", "quadratic", "trailing"])
TIMESTEPS = st.integers(2, 1200)


@st.composite
def spaced(draw: st.DrawFn) -> tuple[NoiseProcess, list[int]]:
    """A process and some of its timesteps by a named spacing."""
    timesteps = draw(TIMESTEPS)
    steps = draw(st.integers(1, timesteps))
    return process_of(draw(NAMES), timesteps), spaced_timesteps(draw(SPACINGS), steps, timesteps)


@settings(deadline=None)
@given(TIMESTEPS)
def test_linear_alphas_cumprod_are_those_of_ddpm(timesteps):
    expected = np.cumprod(1 - papers.ddpm_betas(timesteps))
    assert np.allclose(grid_of("linear", timesteps).alphas_cumprod, expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(TIMESTEPS)
def test_cosine_alphas_cumprod_are_those_of_iddpm_until_beta_is_clipped(timesteps):
    grid = grid_of("cosine", timesteps)
    clipped = (grid.betas > 0.999 - 1e-9).numpy()
    free = ~np.maximum.accumulate(clipped)
    expected = papers.cosine_alpha_bar(timesteps)
    assert np.allclose(grid.alphas_cumprod[free], expected[free], rtol=1e-9, atol=0)
    assert clipped.sum() <= max(1, 0.01 * timesteps) or timesteps < 10
    assert bool((grid.betas <= 0.999 + 1e-9).all())


def test_the_published_betas_of_a_thousand_steps():
    grid = grid_of("linear", 1000)
    assert float(grid.betas[0]) == pytest.approx(1e-4, rel=1e-9)
    assert float(grid.betas[-1]) == pytest.approx(0.02, rel=1e-9)
    assert float(grid.alphas_cumprod[-1]) == pytest.approx(4.0358e-5, rel=1e-3)


@settings(deadline=None)
@given(spaced())
def test_tables_are_finite_float64_and_ordered(case):
    grid = case[0].grid(case[1])
    for name in ("alphas_cumprod", "alphas_cumprod_prev", "betas", "posterior_variance"):
        table = getattr(grid, name)
        assert table.dtype == torch.float64
        assert len(table) == len(case[1])
        assert bool((table >= 0).all())
        assert bool((table <= 1).all())
    assert bool(torch.isfinite(grid.posterior_log_variance_clipped).all())
    assert bool((grid.alphas_cumprod.diff() < 0).all())
    assert bool((grid.posterior_variance <= grid.betas).all())
    assert float(grid.alphas_cumprod_prev[0]) == 1


@settings(deadline=None)
@given(spaced())
def test_a_spaced_process_keeps_alpha_bar_and_original_timesteps(case):
    process, timesteps = case
    full, grid = process.full_grid(), process.grid(timesteps)
    assert torch.equal(grid.alphas_cumprod, full.alphas_cumprod[timesteps])
    assert grid.times.tolist() == timesteps
    assert np.allclose(torch.cumprod(1 - grid.betas, 0), grid.alphas_cumprod, rtol=1e-9, atol=1e-14)


def test_the_full_spacing_is_the_process_itself():
    process = process_of("cosine", 100)
    full = process.full_grid()
    assert torch.equal(process.grid(range(100)).betas, full.betas)
    expected = 1 - full.alphas_cumprod / torch.cat([torch.ones(1), full.alphas_cumprod[:-1]])
    assert torch.allclose(full.betas, expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(spaced(), st.data())
def test_the_posterior_is_bayes_rule(case, data):
    grid = case[0].grid(case[1])
    i = data.draw(st.integers(0, len(grid) - 1))
    previous = float(grid.alphas_cumprod_prev[i])
    alpha = float(grid.alphas_cumprod[i] / previous)
    _, variance = papers.bayes_posterior(alpha, previous, np.zeros(1), np.zeros(1))
    assert float(grid.posterior_variance[i]) == pytest.approx(variance, rel=1e-6, abs=1e-15)


@settings(deadline=None)
@given(NAMES, TIMESTEPS)
def test_real_times_meet_the_table_at_whole_ones_and_are_monotone_between(name, timesteps):
    process = process_of(name, timesteps)
    whole = torch.arange(timesteps)
    for exact, real in zip(process.alpha_sigma(whole), process.alpha_sigma(whole.double()), strict=True):
        assert torch.equal(exact, real)
    assert torch.equal(process.alpha_sigma(whole)[0], process.full_grid().alpha)
    fine = torch.linspace(0, timesteps - 1, 7 * timesteps, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(fine)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert bool((alpha.diff() < 0).all())
    assert bool((sigma.diff() >= 0).all())  # near 1 its steps are smaller than float64's
    assert bool(((alpha / sigma).diff() < 0).all())
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones_like(fine), atol=1e-14)


@settings(deadline=None)
@given(spaced())
def test_a_walk_has_the_tables_as_plain_numbers(case):
    grid = case[0].grid(case[1])
    steps = grid.walk()
    assert [step.t for step in steps] == case[1][::-1]
    assert all(type(value) in (int, float) for step in steps for value in step)
    assert [step.is_last for step in steps] == [False] * (len(steps) - 1) + [True]
    for step, i in zip(steps, reversed(range(len(grid))), strict=True):
        assert (step.alpha, step.sigma) == (float(grid.alpha[i]), float(grid.sigma[i]))
        assert step.beta == float(grid.betas[i])
        assert step.posterior_variance == float(grid.posterior_variance[i])


@settings(deadline=None)
@given(spaced(), st.integers(0, 2**31), st.data())
def test_predict_x0_and_eps_undo_q_sample(case, seed, data):
    grid = case[0].grid(case[1])
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(grid) - 1), min_size=1, max_size=4)))
    source = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(len(index), 2, 3, 3, generator=source, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x_0.shape, generator=source, dtype=torch.float64)
    process, t = case[0], grid.times[index]
    x_t = process.q_sample(x_0, t, noise)
    # Dividing by a tiny √ᾱ takes digits from any arithmetic.
    digits = 1e-10 if float(grid.alphas_cumprod[index].min()) > 1e-10 else 1e-7
    assert torch.allclose(process.read(noise, x_t, t).x0, x_0, rtol=0, atol=digits)
    by_x0 = build_process(process.config.model_copy(update={"prediction": "x0"})).read(x_0, x_t, t)
    assert torch.allclose(by_x0.eps, noise, rtol=0, atol=1e-10)


@settings(deadline=None)
@given(spaced(), st.data())
def test_q_sample_has_the_marginal_of_its_timestep(case, data):
    grid = case[0].grid(case[1])
    i = data.draw(st.integers(0, len(grid) - 1))
    alpha_bar = float(grid.alphas_cumprod[i])
    x_0, noise = torch.tensor([0.3, -1.7], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
    x_t = case[0].q_sample(x_0, grid.times[i], noise)
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
    grid = case[0].grid(case[1])
    largest = max_eta(grid)
    assert largest >= 1
    if len(grid) > 1:
        left = 1 - grid.alphas_cumprod_prev - largest**2 * grid.posterior_variance
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
