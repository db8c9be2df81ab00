"""Checks of the grid: whether every cell's eta leaves a real step."""

from collections.abc import Iterator
from itertools import product

from diffusion.check.findings import Finding, Project
from diffusion.config import Config
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.spacing import spaced_timesteps


def check_eta(project: Project) -> Iterator[Finding]:
    """Whether the largest η leaves 1 − ᾱ_prev − σ² ≥ 0 at every step of every cell."""
    config, eta = project.config, max(project.config.sweep.eta)
    if eta <= 1 or not any(SAMPLERS[name].stochastic for name in _listed(config, "sampler")):
        return  # up to 1 any spacing does
    from diffusion.system.threads import one_thread  # loads torch, as what follows does

    with one_thread():
        found = next(_too_large(config, eta), None)
    if found is not None:
        steps, limit = found
        message = (
            f"sweep.eta: {eta} is too large for {steps} steps, "
            f"where at most {limit} leaves a real direction term"
        )
        yield Finding("error", "sampling", message, "lower it in sweep.eta, or drop these steps")


def _too_large(config: Config, eta: float) -> Iterator[tuple[int, str]]:
    """The numbers of steps for which η is too large, and what is not."""
    from diffusion.process.registry import build_process
    from diffusion.sample.eta import eta_limit, largest_eta

    process = build_process(config.process)
    for steps, spacing in product(config.sweep.steps, _listed(config, "spacing")):
        grid = process.grid(spaced_timesteps(spacing, steps, process.timesteps))
        if eta > largest_eta(grid):
            yield steps, eta_limit(grid)


def _listed(config: Config, axis: str) -> tuple[str, ...]:
    """The values that an axis of the grid takes."""
    values: tuple[str, ...] = getattr(config.sweep, axis) or (getattr(config.sample, axis),)
    return values
