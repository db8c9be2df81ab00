"""Forward process against the closed forms of the papers, for every T, S and spacing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.spacing import check_timesteps, spaced_timesteps
from diffusion.sample.sampling_steps import max_eta
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.trajectories import grid_of, process_of

SCHEDULES = st.sampled_from(["linear", "cosine"])
SPACINGS = st.sampled_from(["uniform", "quadratic", "trailing"])
TIMESTEPS = st.integers(2, 1200)


@st.composite
def spaced(draw: st.DrawFn) -> tuple[NoiseProcess, list[int]]:
    """Draw a process and a subset of its timesteps with a named spacing."""
    timesteps = draw(TIMESTEPS)
    steps = draw(st.integers(1, timesteps))
    return process_of(draw(SCHEDULES), timesteps), spaced_timesteps(draw(SPACINGS), steps, timesteps)


@given(TIMESTEPS)
def test_linear_alphas_cumprod_match_ddpm(timesteps):
    expected = np.cumprod(1 - papers.ddpm_betas(timesteps))
    assert np.allclose(grid_of("linear", timesteps).alphas_cumprod, expected, rtol=1e-12, atol=0)


@given(TIMESTEPS)
def test_cosine_alphas_cumprod_match_iddpm_until_beta_is_clipped(timesteps):
    grid = grid_of("cosine", timesteps)
    clipped = (grid.betas > 0.999 - 1e-9).numpy()
    unclipped = ~np.maximum.accumulate(clipped)
    expected = papers.cosine_alpha_bar(timesteps)
    assert np.allclose(grid.alphas_cumprod[unclipped], expected[unclipped], rtol=1e-9, atol=0)
    assert clipped.sum() <= max(1, 0.01 * timesteps) or timesteps < 10
    assert bool((grid.betas <= 0.999 + 1e-9).all())


@given(spaced())
def test_grid_keeps_its_times_and_its_tables_are_finite_and_ordered(case):
    process, timesteps = case
    grid = process.grid(timesteps)
    assert torch.equal(grid.alphas_cumprod, process.full_grid().alphas_cumprod[timesteps])
    assert grid.times.tolist() == timesteps
    assert np.allclose(torch.cumprod(1 - grid.betas, 0), grid.alphas_cumprod, rtol=1e-9, atol=1e-14)
    for name in ("alphas_cumprod", "alpha_prev", "betas", "posterior_variance"):
        table = getattr(grid, name)
        assert table.dtype == torch.float64
        assert len(table) == len(timesteps)
        assert bool((table >= 0).all())
        assert bool((table <= 1).all())
    assert bool(torch.isfinite(grid.posterior_log_variance_clipped).all())
    assert bool((grid.alphas_cumprod.diff() < 0).all())
    assert bool((grid.posterior_variance <= grid.betas).all())
    assert float(grid.alpha_prev[0]) == 1


@given(SCHEDULES, TIMESTEPS)
def test_alpha_sigma_match_table_at_integer_times_and_are_monotone(name, timesteps):
    process = process_of(name, timesteps)
    integers = torch.arange(timesteps)
    for exact, real in zip(
        process.alpha_sigma(integers), process.alpha_sigma(integers.double()), strict=True
    ):
        assert torch.equal(exact, real)
    assert torch.equal(process.alpha_sigma(integers)[0], process.full_grid().alpha)
    fine = torch.linspace(0, timesteps - 1, 7 * timesteps, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(fine)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert bool((alpha.diff() < 0).all())
    assert bool((sigma.diff() >= 0).all())  # near 1 the differences are below float64 precision
    assert bool(((alpha / sigma).diff() < 0).all())
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones_like(fine), atol=1e-14)


@given(st.integers(2, 1000), st.data())
def test_timesteps_are_distinct_and_uniform_and_trailing_ones_evenly_spaced(timesteps, data):
    steps = data.draw(st.integers(2, timesteps))
    even = {"uniform": (timesteps - 1) / (steps - 1), "trailing": timesteps / steps}
    for spacing in ("uniform", "quadratic", "trailing"):
        spaced = spaced_timesteps(spacing, steps, timesteps)
        assert (len(spaced), spaced[-1]) == (steps, timesteps - 1)
        assert spaced[0] == 0 or spacing == "trailing"
        gaps = np.diff(spaced)
        assert gaps.min() > 0
        assert spacing not in even or abs(gaps - even[spacing]).max() < 1 + 1e-9


def test_quadratic_timesteps_match_formula():
    timesteps = spaced_timesteps("quadratic", 7, 500)
    assert timesteps == [round(499 * (i / 6) ** 2) for i in range(7)]


@pytest.mark.parametrize("timesteps", [2, 50, 777, 1000])
def test_grids_of_papers_equal_those_of_their_code(timesteps):
    """ermongroup/ddim, runners/diffusion.py; openai/guided-diffusion, respace.py. Other S are refused."""
    strides = [range(0, timesteps, stride) for stride in range(1, timesteps)]
    for steps in range(1, timesteps + 1):
        uniform = range(0, timesteps, timesteps // steps)
        root = np.linspace(0, np.sqrt(timesteps * 0.8), steps)
        expected = {
            "ddim-uniform": uniform if len(uniform) == steps > 1 else None,
            "ddim-quadratic": [int(time) for time in root**2] if steps > 1 else None,
            "adm-stride": next((times for times in strides if len(times) == steps), None),
        }
        for spacing, times in expected.items():
            if times is None:
                with pytest.raises(UsageError, match=f"{spacing} takes "):
                    spaced_timesteps(spacing, steps, timesteps)
            else:
                assert spaced_timesteps(spacing, steps, timesteps) == list(times)


@given(spaced())
def test_max_eta_gives_zero_direction_coefficient(case):
    grid = case[0].grid(case[1])
    largest = max_eta(grid)
    assert largest >= 1
    if len(grid) > 1:
        coefficient = 1 - grid.alpha_prev.square() - largest**2 * grid.posterior_variance
        assert float(coefficient[1:].min()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [0, -1, 11])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing"])
def test_invalid_step_counts_are_refused(steps, spacing):
    with pytest.raises(UsageError, match=f"{steps} sampling steps do not fit: give 1 to 10"):
        spaced_timesteps(spacing, steps, 10)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [([], "increase"), ([3, 3, 9], "increase strictly"), ([-1, 9], "0 … 9"), ([0, 8], "end there")],
)
def test_invalid_timesteps_are_refused(timesteps, message):
    with pytest.raises(UsageError, match=message):
        check_timesteps(timesteps, 10)
    assert check_timesteps([0, 4, 9], 10) == [0, 4, 9]
