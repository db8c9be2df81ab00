"""Methods on Gaussian data with the exact denoiser, against their recursions of mean and covariance."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion.edit.editor import count_edit_nfe
from diffusion.edit.method import build_method, travelled_path
from diffusion.process.time_grid import GridStep
from diffusion.protocol.edits import TravelOptions
from tests.helpers.gaussian_edits import SHAPE, Problem, denoised, problem, recursion
from tests.helpers.trajectories import randn

MASK = "mask:1,0,3,2"
OPERATORS = (MASK, "downsample:2", "gray", "blur:0.8", "gray+downsample:2")
PAIR = ("cosine", "edm")
PROCESSES = ("cosine", "edm", "flow")
TRAVEL = {"travel_length": 2, "travel_repeat": 3}
CASES = [
    *(problem("ddnm", operator, process) for operator in OPERATORS for process in PROCESSES),
    *(problem("ddnm", operator, eta=0.3, sigma_y=0.2) for operator in OPERATORS),
    problem("ddnm", "gray", eta=0.0, sigma_y=0.2),
    problem("ddnm", "blur:0.8", "edm", sigma_y=0.05, **TRAVEL),
    *(problem("projection", operator, process) for operator in OPERATORS for process in PROCESSES),
    *(problem("projection", "blur:0.8", sampler=name, eta=eta) for name, eta in (("ddim", 1), ("euler", 0))),
    problem("projection", "downsample:2", "edm", spacing="karras"),
    *(problem("repaint", MASK, process, **TRAVEL) for process in PROCESSES),
    *(problem("sdedit", None, one, eta=0.5, strength=s) for one in PROCESSES for s in (0.41, 1)),
    problem("sdedit", None, "edm", spacing="karras"),
]


def name_of(given: Problem) -> str:
    return f"{given.edit.method}-{given.edit.operator}-{given.process.config.schedule}-{given.edit.sigma_y}"


@pytest.mark.parametrize("given", CASES, ids=name_of)
def test_mean_and_covariance_are_those_of_the_recursion(given: Problem) -> None:
    found, wanted = given.result(), recursion(given)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-8)
    assert torch.allclose(found.covariance, wanted.covariance, atol=1e-8)
    if given.edit.method in ("ddnm", "projection") and not given.edit.sigma_y:
        y = given.measurement.y.flatten()
        assert torch.allclose(given.matrix @ found.mean, y, atol=1e-10)
        assert float((given.matrix @ found.covariance @ given.matrix.T).abs().max()) < 1e-12


def dps_step(given: Problem, step: GridStep, x: Tensor, z: Tensor) -> Tensor:
    """Return x' (B, SIZE) by alg. 1 of 2209.14687 for a linear denoiser, whose gradient is in closed form."""
    zeta, data = given.edit.options.zeta, denoised(step.alpha, step.sigma)
    x0_hat = x @ data.matrix.T + data.offset
    left = given.measurement.y.flatten() - x0_hat @ given.matrix.T
    gradient = -(left / left.norm(dim=1, keepdim=True)) @ given.matrix @ data.matrix
    beta = step.sigma**2 - (step.alpha / step.alpha_prev * step.sigma_prev) ** 2
    mean = step.alpha_prev * beta / step.sigma**2 * x0_hat
    mean = mean + step.alpha / step.alpha_prev * (step.sigma_prev / step.sigma) ** 2 * x
    spread = math.sqrt(beta) * step.sigma_prev / step.sigma
    scale = math.hypot(step.alpha, step.sigma) * math.hypot(step.alpha_prev, step.sigma_prev)
    return mean + spread * z - zeta * scale * gradient


@pytest.mark.parametrize("process", ["cosine", "edm"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_dps_follows_the_gradient_in_closed_form(operator: str, process: str) -> None:
    given = problem("dps", operator, process, zeta=0.4)
    noise = randn(7, 5, *SHAPE)
    found = given.run(iter(noise))
    x, draws = noise[0].flatten(1) * given.grid.initial_noise_scale, iter(noise[1:])
    for step in given.grid.reverse_steps():
        z = torch.zeros_like(x) if step.is_last else next(draws).flatten(1)
        x = dps_step(given, step, x, z)
    assert torch.allclose(found, x, atol=1e-9)
    assert count_edit_nfe(given.edit, given.settings, given.measurement, given.process) == 12


@pytest.mark.parametrize(("operator", "zeta"), [(MASK, 0.5), ("gray", 0.3)])
def test_dps_has_the_papers_scale_by_default(operator: str, zeta: float) -> None:
    noise = randn(7, 2, *SHAPE)
    ends = [problem("dps", operator, **options).run(iter(noise)) for options in ({}, {"zeta": zeta})]
    assert torch.equal(*ends)


def test_dps_does_not_depend_on_the_scale_of_a_process() -> None:
    """At equal noise levels, images divided by α have the same results."""
    options = {"sigma_min": 0.03, "sigma_max": 50.0}
    given = [problem("dps", "gray", process, spacing="karras", spacing_options=options) for process in PAIR]
    alphas = [one.grid.reverse_steps()[0].alpha for one in given]
    assert alphas == [pytest.approx((1 + 50**2) ** -0.5), 1]
    noise = randn(7, 5, *SHAPE)
    longer = noise[0] * (1 + 50**-2) ** 0.5  # EDM starts at σ·ε, without the data's α² of 1
    ends = [one.run(iter([start, *noise[1:]])) for one, start in zip(given, (noise[0], longer), strict=True)]
    assert torch.allclose(*ends, atol=1e-8)


def test_path_goes_back_before_the_image_and_after_each_length() -> None:
    """The states of a path, as steps left to the image, for 5 steps with 2 back, twice."""
    grid = problem("ddnm", "gray", steps=5).grid
    left = {step.t: 5 - done for done, step in enumerate(grid.reverse_steps())}
    moves = travelled_path(grid, TravelOptions(travel_length=2, travel_repeat=2))
    states = [left[move.step.t] - (not move.back) for move in moves]
    assert states == [4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]


def test_nfe_of_moves_back_is_the_formula_of_the_authors_code() -> None:
    """RePaint's 250 steps with 10 back, 10 times: 4,570 moves, 2,410 of them calls."""
    given = problem("repaint", MASK, steps=100, travel_length=10, travel_repeat=10)
    nfe = count_edit_nfe(given.edit, given.settings, given.measurement, given.process)
    assert nfe == 100 + 10 * 9 * len(range(0, 100 - 10, 10))


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras"])
@pytest.mark.parametrize("process", PROCESSES)
def test_strength_is_the_share_of_the_steps(process: str, spacing: str) -> None:
    given = problem("sdedit", None, process, steps=50, spacing=spacing, strength=0.6)
    assert count_edit_nfe(given.edit, given.settings, given.measurement, given.process) == 30


def test_the_last_steps_churn_as_those_of_the_whole_sampler() -> None:
    """γ is s_churn/S (2206.00364, alg. 2), whatever number of the S steps is taken."""
    given = problem("sdedit", None, "edm", spacing="karras", steps=10, strength=0.5)
    churn = given.settings.model_copy(update={"sampler": "heun", "sampler_options": {"s_churn": 2.0}})
    start = replace(given, settings=churn)
    sampler = build_method(start.edit, churn, start.measurement, start.process)
    noise = randn(7, 1, *SHAPE)
    first = next(sampler(start.grid, noise[0], lambda: noise[1]))
    level = float(start.grid.sigma[4])  # 1 + ⌊0.5·9⌋ of 10 steps
    assert first.t == pytest.approx(level * 1.2)
