"""Solvers: orders on a mixture with its exact score, identities, any number of steps, the public code."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion.analysis.mixture import Mixture, MixtureDenoiser
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS, ChurnOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.ddim import Ddim
from diffusion.sample.dpm_solver import DPMSolverMultistep, DPMSolverSDE
from diffusion.sample.euler import EulerAncestral, Heun
from diffusion.sample.ipndm import IPNDM
from diffusion.sample.ode_step import phi
from diffusion.sample.sampler import Sampler, Step, build_sampler, run_sampler
from diffusion.sample.sampling_steps import call_times, sampling_grid
from diffusion.sample.unipc import UniPC
from tests.conftest import ROOT
from tests.helpers.trajectories import Draws, grid_of, process_of, randn, step_counts, walk

CENTRES = torch.tensor([[0.6, 0.0], [-0.3, 0.5], [-0.4, -0.5]], dtype=torch.float64)
MIXTURE = Mixture(CENTRES, 0.4)
LOWEST, HIGHEST = 0.02, 40.0  # noise levels of the grids
COUNTS = (64, 128, 256)


def grid_at(levels: Tensor) -> TimeGrid:
    """Return a variance-preserving grid with these increasing noise levels σ/α; its times are 0, 1, …"""
    alpha = (1 + levels.square()).rsqrt()
    return TimeGrid(torch.arange(len(levels)), alpha, levels * alpha)


def log_levels(steps: int) -> Tensor:
    return torch.logspace(np.log10(LOWEST), np.log10(HIGHEST), steps + 1, dtype=torch.float64)


class ExactDenoiser:
    """E[x_0 | x_t] of the mixture at the times of a grid."""

    def __init__(self, grid: TimeGrid) -> None:
        self.grid = grid

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        alpha, sigma = float(self.grid.alpha[int(t)]), float(self.grid.sigma[int(t)])
        x0 = MIXTURE.x0(x.flatten(1), alpha, sigma).reshape(x.shape)
        return Prediction(x0, (x - alpha * x0) / sigma)


@cache
def exact_flow(start: float, end: float) -> Tensor:
    """Return x̄ at the noise level `end` of the ODE's solutions from `randn(6, 2, 1, 1)` at `start`."""

    def slope(level: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat.reshape(-1, 2))
        return ((x - MIXTURE.x0(x, 1.0, level)) / level).numpy().ravel()

    first = (randn(6, 2, 1, 1) * (1 + start**2) ** 0.5).numpy().ravel()
    solved = solve_ivp(slope, (start, end), first, method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.from_numpy(solved.y[:, -1]).reshape(6, 2, 1, 1)


def error_halfway(sampler: Sampler, levels: Tensor) -> float:
    """Return the largest error of x̄ in the middle of the grid, where no solver lowers its order."""
    grid, half = grid_at(levels), len(levels) // 2
    steps: list[Step] = []
    start = randn(6, 2, 1, 1)
    walk(ExactDenoiser(grid), grid, lambda: start, sampler, callback=steps.append)
    alpha = float(grid.alpha[-1 - half])
    return float((steps[half - 1].x / alpha - exact_flow(float(levels[-1]), float(levels[half]))).abs().max())


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Heun(correct=False, clip=False), 1),
        (Heun(straight=True, clip=False), 2),
        (DPMSolverMultistep(clip=False), 2),
        (DPMSolverSDE(3, eta=0, clip=False), 2),
        (UniPC(2, "bh2", clip=False), 3),
        (UniPC(3, "bh2", clip=False), 4),
    ],
)
def test_error_falls_with_the_order(sampler, order):
    errors = [error_halfway(sampler, log_levels(count)) for count in COUNTS]
    slope = -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
    assert order - 0.35 < slope < order + 0.35


SPACED = st.tuples(
    st.sampled_from(["linear", "cosine"]), st.sampled_from(["uniform", "trailing"]), st.integers(1, 40)
)


@settings(max_examples=10)
@given(SPACED, st.floats(0, 1), st.booleans())
def test_methods_of_order_1_are_ddim(chosen, eta, clip):
    """iPNDM of order 1 and Euler's method are DDIM with η = 0, ancestral sampling is DDIM with any η."""
    name, spacing, steps = chosen
    process = process_of(name, 100)
    grid, denoiser = process.grid(spaced_timesteps(spacing, steps, 100)), MixtureDenoiser(MIXTURE, process)
    ends = [
        walk(denoiser, grid, Draws(6, 2, 1, 1), sampler)
        for sampler in (
            *(Ddim(clip=clip), Heun(correct=False, clip=clip), IPNDM(1, clip=clip)),
            *(Ddim(eta, clip=clip), EulerAncestral(eta, clip=clip)),
        )
    ]
    assert torch.allclose(ends[0], torch.stack(ends[1:3]), rtol=0, atol=1e-9)
    assert torch.allclose(ends[3], ends[4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("z", [-3.0, -1.0, -0.999, -1e-3, -1e-9])
def test_phi_is_its_series(order, z):
    """The recursion and the series agree, and neither cancels: Σ_j z^j/(j + k)!."""
    terms = [z**j / np.prod(np.arange(1, j + order + 1, dtype=np.float64)) for j in range(40)]
    assert phi(order, z) == pytest.approx(float(np.sum(np.sort(terms))), rel=1e-12)


OF_200_TIMES = MixtureDenoiser(MIXTURE, process_of("cosine", 200))


@pytest.mark.hypothesis
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_any_number_of_steps_is_finite_and_calls_as_often_as_stated(sampler):
    for steps in step_counts():
        spacing = ("uniform", "quadratic", "trailing")[steps % 3]
        grid = grid_of("cosine", 200, spaced_timesteps(spacing, steps, 200))
        made = build_sampler(SampleSettings(sampler=sampler, steps=steps))
        seen: list[Step] = []
        trajectory = made(grid, randn(1, 2, 1, 1), lambda: randn(1, 2, 1, 1, seed=1))
        result = run_sampler(trajectory, OF_200_TIMES, Condition(1), seen.append)
        assert result.nfe == SAMPLERS[sampler].nfe(steps)
        assert len(seen) == steps
        assert torch.equal(result.x, seen[-1].x0_hat)
        assert result.x.abs().max() <= 1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_repeated_time_and_an_infinite_noise_level_stay_finite(sampler):
    """DDIM's quadratic grid repeats times, which move nothing; a flow begins at α = 0."""
    times, ends = spaced_timesteps("ddim-quadratic", 100, 200), []
    assert len(set(times)) < len(times)
    start = randn(6, 2, 1, 1)
    made = build_sampler(SampleSettings(sampler=sampler, steps=100, clip=False))
    for chosen in (times, sorted(set(times))):
        grid = grid_of("cosine", 200, chosen)
        ends.append(walk(OF_200_TIMES, grid, lambda: start, made))
    assert torch.stack(ends).isfinite().all()
    if sampler in ("ddim", "dpm-solver++"):
        assert torch.allclose(*ends, rtol=0, atol=1e-9)
    sigma = torch.linspace(0.02, 1, 10, dtype=torch.float64)
    flow = TimeGrid(torch.arange(10), 1 - sigma, sigma)
    ends = walk(ExactDenoiser(flow), flow, Draws(6, 2, 1, 1), made)
    assert ends.isfinite().all()
    distance = torch.cdist(ends.flatten(1), CENTRES).min(1).values
    assert distance.max() < 6 * MIXTURE.std


@pytest.mark.parametrize(("churn", "factor"), [(0.0, 1), (0.6, 1.1), (1e6, 2**0.5)])
@pytest.mark.parametrize("bounds", [(0.0, 1e9), (0.1, 20.0)])
def test_churned_noise_level_is_that_of_the_paper(churn, factor, bounds):
    """σ̂ = σ(1 + min(s_churn/S, √2 − 1)) within its bounds (EDM alg. 2), at most the process's largest."""
    options = {"s_churn": churn, "s_tmin": bounds[0], "s_tmax": bounds[1]}
    chosen = SampleSettings(sampler="euler", spacing="karras", steps=6, sampler_options=options)
    process = process_of("linear", 1000)
    grid = sampling_grid(chosen, process)
    levels = (grid.sigma / grid.alpha).tolist()[::-1]
    times = torch.tensor(call_times(chosen, process), dtype=torch.float64)
    factors = [factor if bounds[0] <= level <= bounds[1] else 1 for level in levels]
    wanted = [min(level * raised, levels[0]) for level, raised in zip(levels, factors, strict=True)]
    assert process.noise_level(times).tolist() == pytest.approx(wanted, rel=1e-9)


# The same points as k-diffusion, diff-sampler and UniPC (tests/golden/NOTICE.md).

CHURN = ChurnOptions(s_churn=2, s_noise=1.003)
REFERENCES = {
    "k-diffusion euler": Heun(correct=False, clip=False),
    "k-diffusion euler churn": Heun(correct=False, churn=CHURN, clip=False),
    "k-diffusion heun": Heun(clip=False),
    "k-diffusion heun churn": Heun(churn=CHURN, clip=False),
    "k-diffusion euler_ancestral": EulerAncestral(0.7, 1.1, clip=False),
    **{
        f"k-diffusion dpmpp_{order}m_sde {eta}": DPMSolverSDE(order, eta, clip=False)
        for order, eta in product((2, 3), (0.0, 0.7))
    },
    **{f"diff-sampler ipndm {order}": IPNDM(order, clip=False) for order in (2, 3, 4)},
    **{f"unipc {b} {order}": UniPC(order, b, clip=False) for b, order in product(("bh1", "bh2"), (2, 3))},
}
EDM = build_process(ProcessConfig(schedule="edm", prediction="edm", sigma_data=0.5))
COSINE = build_process(ProcessConfig(prediction="velocity", variance="small", loss="simple"))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("process", [EDM, COSINE])
def test_ends_equal_those_of_the_public_code(name, process):
    """The same along the noise levels of any process: its frame is x/α."""
    with np.load(ROOT / "tests/golden/solvers.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in ("levels", "start", "draws", name)}
    grid = process.grid(process.times_at(stored["levels"]).tolist())
    start = float(grid.alpha[-1]) * stored["start"]
    draws = (draw.reshape(6, 2, 1, 1) for draw in (start, *stored["draws"]))
    found = walk(MixtureDenoiser(MIXTURE, process), grid, draws.__next__, REFERENCES[name])
    assert torch.allclose(found.flatten(1), stored[name], rtol=0, atol=1e-9)
