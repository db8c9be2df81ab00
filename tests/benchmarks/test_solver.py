"""The solver's rule among those that were tried, by mixtures whose exact flow is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import solver
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from tests.helpers.walks import grid_of, sample


def typical(rule: str, schedule: str, *, steps: tuple[int, ...], **spacings: tuple[str, ...]) -> float:
    return solver.typical_error(rule, schedule, images=60, steps=steps, **spacings)


@pytest.mark.parametrize("schedule", solver.SCHEDULES)
def test_it_comes_closer_than_the_other_rules(schedule):
    """Over mixtures from sharp to broad, all spacings and few steps, to the exact flow's end."""
    steps = (5, 7, 10, 20)
    ours = typical("ours", schedule, steps=steps)
    for rule in ("order 2", "published", "order 1 for r < 1/2", "at most r"):
        assert ours < typical(rule, schedule, steps=steps), rule
    assert ours < typical("DDIM", schedule, steps=steps) / 2


@pytest.mark.parametrize("schedule", solver.SCHEDULES)
def test_it_keeps_the_order_where_a_half_at_most_loses_it(schedule):
    many = {"steps": (50, 100), "spacings": ("trailing",)}
    assert typical("ours", schedule, **many) < typical("at most 1/2", schedule, **many)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["linear", "cosine"]), st.sampled_from([*SPACINGS]), st.integers(2, 30))
def test_the_rule_that_was_chosen_is_the_samplers(schedule, spacing, steps):
    mixture = solver.MIXTURES["between"]
    grid, start = (
        grid_of(schedule, 1000, spaced_timesteps(spacing, steps, 1000)),
        torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    table = {int(t): (a, s) for t, a, s in zip(grid.times, grid.alpha, grid.sigma, strict=True)}

    def network(x, t, labels):
        alpha, sigma = table[int(t[0])]
        return (x - alpha * mixture.x0(x[:, :, 0, 0], alpha, sigma)[:, :, None, None]) / sigma

    found = sample(network, grid, lambda: start[:, :, None, None], sampler="dpm-solver++", clip=False)
    assert torch.allclose(
        found[:, :, 0, 0], solver.walked(mixture, grid, start, solver.RULES["ours"]), atol=1e-6
    )
