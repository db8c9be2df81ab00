"""How far DPM-Solver++(2M) should read ahead: rules against the exact flow of mixtures of Gaussians.

With λ of times r, s, t in a row and r = (λ_s − λ_r)/(λ_t − λ_s), a step from s to t is made by x̂_0(x_s) +
c·(x̂_0(x_s) − x̂_0(x_r)); order 2 is c = 1/2r. A mixture's x̂_0 is known in closed form, so that all
error is the solver's.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from diffusion.analysis.mixture import Mixture
from diffusion.process.config import ProcessConfig
from diffusion.process.registry import build_process
from diffusion.process.time_grid import Grid
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.dpm_solver import read_ahead

Rule = Callable[[float, bool, int], float]  # r, whether the step is the last that leaves noise, S → c

RULES: dict[str, Rule] = {
    "DDIM": lambda r, last, steps: 0.0,
    "order 2": lambda r, last, steps: 1 / (2 * r),
    "published": lambda r, last, steps: 0.0 if last and steps < 10 else 1 / (2 * r),
    "order 1 for r < 1/2": lambda r, last, steps: 0.0 if r < 0.5 else 1 / (2 * r),
    "at most 1/2": lambda r, last, steps: min(1 / (2 * r), 0.5),
    "at most r": lambda r, last, steps: min(1 / (2 * r), r),
    "ours": lambda r, last, steps: read_ahead(r),
}
STEPS = (5, 7, 10, 15, 20)
SCHEDULES = ("linear", "cosine")


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


_MEANS = 0.8 * _drawn(6, 8, seed=3).clamp(-1, 1)
MIXTURES = {"sharp": Mixture(_MEANS, 0.05), "between": Mixture(_MEANS, 0.15), "broad": Mixture(_MEANS, 0.3)}


def walked(mixture: Mixture, grid: Grid, x: Tensor, rule: Rule) -> Tensor:
    """Where a walk from x, (N, D), along the grid ends."""
    steps, earlier, h_before = grid.walk(), None, math.nan
    for done, step in enumerate(steps, start=1):
        x0 = mixture.x0(x, step.alpha, step.sigma)
        if step.is_last:
            return x0
        h = step.log_snr_prev - step.log_snr
        ahead = 0.0 if earlier is None else rule(h_before / h, done == len(steps) - 1, len(steps))
        data = x0 if earlier is None else x0 + ahead * (x0 - earlier)
        x = step.sigma_prev / step.sigma * x - step.alpha_prev * math.expm1(-h) * data
        earlier, h_before = x0, h
    raise AssertionError("the last step ends at the image")


def errors(rule: str, schedule: str, spacing: str, steps: int, images: int) -> list[float]:
    """The mean squared distance from the exact flow's end, for each mixture."""
    process, start = build_process(ProcessConfig(schedule=schedule)), _drawn(images, 8, seed=1)
    grid = process.grid(spaced_timesteps(spacing, steps, process.timesteps))
    ends = {name: walked(mixture, grid, start, RULES[rule]) for name, mixture in MIXTURES.items()}
    return [
        float((end - exact_end(name, schedule, images)).square().sum(1).mean()) for name, end in ends.items()
    ]


@lru_cache
def exact_end(mixture: str, schedule: str, images: int) -> Tensor:
    """Where the exact flow ends: 1,000 steps of order 2."""
    process = build_process(ProcessConfig(schedule=schedule))
    return walked(MIXTURES[mixture], process.full_grid(), _drawn(images, 8, seed=1), RULES["order 2"])


def typical_error(
    rule: str, schedule: str, images: int, steps: Sequence[int], spacings: Sequence[str] = tuple(SPACINGS)
) -> float:
    """The geometric mean of the errors over mixtures, spacings and step counts."""
    cells = itertools.product(spacings, steps)
    logs = [math.log(error) for cell in cells for error in errors(rule, schedule, *cell, images)]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    """Print the typical error of each rule by schedule, spacing and steps."""
    torch.set_num_threads(1)
    for schedule, spacing in itertools.product(SCHEDULES, SPACINGS):
        print(f"\n| {schedule}, {spacing} | {' | '.join(map(str, STEPS))} |\n|{' --- |' * (len(STEPS) + 1)}")
        for rule in RULES:
            found = (typical_error(rule, schedule, 400, [steps], [spacing]) for steps in STEPS)
            print(f"| {rule} | {' | '.join(f'{error:.3g}' for error in found)} |", flush=True)


if __name__ == "__main__":
    main()
