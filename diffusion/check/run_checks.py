"""Checks of the grid: that every eta leaves a real step, every interval holds one, every cell has a model."""

from collections.abc import Iterator
from itertools import product

from diffusion.check.findings import Finding, Project
from diffusion.config import Config
from diffusion.layout import AVERAGES, MODEL
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.system.errors import DiffctlError

MAX_NAMED = 3  # cells in a sentence


def check_eta(project: Project) -> Iterator[Finding]:
    """Check whether the largest η leaves 1 − ᾱ_prev − σ² ≥ 0 at every step of every cell."""
    config, eta = project.config, max(project.config.sweep.eta)
    if eta <= 1 or not any(SAMPLERS[name].stochastic for name in _listed(config, "sampler")):
        return  # up to 1 any spacing does
    from diffusion.system.threads import single_thread  # loads torch, as what follows does

    with single_thread():
        found = next(_too_large(config, eta), None)
    if found is not None:
        steps, limit = found
        message = (
            f"sweep.eta: {eta} is too large for {steps} steps, "
            f"where at most {limit} leaves a real direction term"
        )
        yield Finding("error", "sampling", message, "lower it in sweep.eta, or drop these steps")


def check_averages(project: Project) -> Iterator[Finding]:
    """Check whether the EMA profiles of the sweep can be made from the finished training's snapshots."""
    if not project.config.sweep.widths or not project.is_trained:
        return
    from diffusion.sample.ema_models import matching_snapshots

    try:
        matching_snapshots(project.root / MODEL, project.root / AVERAGES)
    except DiffctlError as error:
        yield Finding("error", "sampling", f"sweep.ema: {error}")


def _too_large(config: Config, eta: float) -> Iterator[tuple[int, str]]:
    """The numbers of steps for which η is too large, and what is not."""
    from diffusion.process.process_registry import build_process
    from diffusion.sample.sampling_steps import format_max_eta, max_eta

    process = build_process(config.process)
    for steps, spacing in product(config.sweep.steps, _listed(config, "spacing")):
        grid = process.grid(spaced_timesteps(spacing, steps, process.timesteps))
        if eta > max_eta(grid):
            yield steps, format_max_eta(grid)


def check_guidance(project: Project) -> Iterator[Finding]:
    """Check whether every guidance interval contains a step."""
    config = project.config
    settings = {cell.name: cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep)}
    limited = {name: one for name, one in settings.items() if one.evaluations is None}
    if not limited:
        return
    from diffusion.system.threads import single_thread  # loads torch, as the following does

    with single_thread():
        unguided = [name for name, one in limited.items() if not _is_guided(config, one)]
    if unguided:
        message = f"guidance applies at no step of {', '.join(unguided[:MAX_NAMED])}"
        message += f" and {len(unguided) - MAX_NAMED} more cells" if len(unguided) > MAX_NAMED else ""
        yield Finding("warning", "sampling", message, "`diffctl show steps` lists σ/α of each step")


def _is_guided(config: Config, settings: SampleSettings) -> bool:
    """Return whether the weight of guidance is positive at some call of the network."""
    from diffusion.process.process_registry import build_process
    from diffusion.sample.guidance import guidance_weight
    from diffusion.sample.sampling_steps import call_times

    process = build_process(config.process)
    return any(guidance_weight(settings, process, t) for t in call_times(settings, process))


def _listed(config: Config, axis: str) -> tuple[str, ...]:
    """Return the values of an axis of the grid."""
    values: tuple[str, ...] = getattr(config.sweep, axis) or (getattr(config.sample, axis),)
    return values
