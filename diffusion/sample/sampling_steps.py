"""The steps of a sampler: their times, the limit of eta on them, its calls of the denoiser, and the NFE."""

import math

import torch

from diffusion.process.denoiser import Prediction
from diffusion.process.discrete import require_discrete
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import Noise
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED, SPACINGS, check_steps, check_timesteps, spaced_timesteps
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.sampler import SamplerDriver, build_sampler
from diffusion.system.errors import UsageError


def sampling_grid(settings: SampleSettings, process: NoiseProcess) -> TimeGrid:
    """Return the times that the settings visit; UsageError where the process does not have them."""
    return process.grid(spaced_times(settings, process))


def spaced_times(settings: SampleSettings, process: NoiseProcess) -> list[int] | list[float]:
    """Return S increasing times: timesteps of a discrete process if the spacing has them, else real times.

    Those in noise levels begin and end exactly at the ends of the process if the levels do. UsageError for
    levels beyond those of the process.
    """
    if settings.timesteps is not None:
        whole = require_discrete(process, "a list of timesteps").timesteps
        return check_timesteps(settings.timesteps, whole)
    spacing, steps, entry = settings.spacing, settings.steps, SPACINGS[settings.spacing]
    check_steps(spacing, steps, process.timesteps)
    if process.timesteps is not None and entry.whole is not None:
        return spaced_timesteps(spacing, steps, process.timesteps)
    options = entry.parse(settings.spacing_options)
    if not entry.in_noise:
        return entry.between(steps, process.t_min, process.t_max, options)
    if entry.has_levels:
        low, high = options.levels[-1], options.levels[0]
    else:
        low, high = options.sigma_min or process.sigma_min, options.sigma_max or process.sigma_max
    limits = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    lowest, highest = process.noise_level(limits).tolist()  # the highest may be ∞
    if not (lowest <= low <= high <= highest and (low < high or entry.has_levels)):
        raise UsageError(
            f"spacing_options from sigma_min {low:g} to sigma_max {high:g} do not fit process.schedule "
            f"{process.config.schedule}: its noise levels are {lowest:g} to {highest:g}"
        )
    levels = entry.between(steps, low, high, options)
    times: list[float] = process.times_at(torch.tensor(levels, dtype=torch.float64)).tolist()
    ends = {lowest: process.t_min, highest: process.t_max}
    return [ends.get(level, time) for level, time in zip(levels, times, strict=True)]


def max_eta(grid: TimeGrid) -> float:
    """Return the largest η for which σ'² − η²β̃ ≥ 0 at every step, so σ²/β (DDIM eq. 12); at least 1."""
    if len(grid) == 1:
        return math.inf
    return float((grid.sigma[1:].square() / grid.betas[1:].abs()).min().sqrt())  # β may be −0


def check_eta(grid: TimeGrid, eta: float) -> None:
    """Raise UsageError if σ² exceeds 1 − ᾱ_prev at some step of the grid."""
    largest = max_eta(grid)
    if not 0 <= eta <= largest:
        shown = f"{math.floor(largest * 1e4) / 1e4:.4f}"  # rounded down, so that it is allowed itself
        raise UsageError(f"eta {eta} does not fit {len(grid)} steps: give 0 to {shown}")


def check_noise(noise: Noise, learned: bool) -> None:
    """Raise UsageError for learned noise with a network without a learned variance."""
    if noise == "learned" and not learned:
        raise UsageError("noise learned needs a model with a learned variance; use small or large")


@torch.no_grad()
def call_times(settings: SampleSettings, process: NoiseProcess) -> list[float]:
    """Return the time of each call of the denoiser, in order, from a run on a single pixel.

    Except for images a sampler computes plain numbers, so that no image changes its calls. UsageError as the
    sampler's own.
    """
    pixel = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    driver = SamplerDriver(build_sampler(settings)(sampling_grid(settings, process), pixel, lambda: pixel))
    times: list[float] = []
    while driver.call is not None:
        times.append(driver.call.t)
        driver.advance(Prediction(pixel, pixel, pixel))
    return times


def count_nfe(settings: SampleSettings, config: ProcessConfig) -> int:
    """Return the number of function evaluations (NFE) of an image within the process of that section.

    That is one per call of the sampler, and that of the rule where guidance applies.
    """
    if settings.nfe is not None:
        return settings.nfe
    process = build_process(config)
    weights = [guidance_weight(settings, process, t) for t in call_times(settings, process)]
    return sum(settings.guided_nfe if weight else 1 for weight in weights)


def check_learned_times(settings: SampleSettings, model_sha256: str) -> None:
    """Raise UsageError if the times were learned with another model."""
    learned_for = settings.spacing_options.get("model_sha256") if settings.spacing == LEARNED else None
    if learned_for and learned_for != model_sha256:
        raise UsageError(
            f"the learned times are of model {learned_for[:16]}, and this is {model_sha256[:16]}: "
            "make its own with `diffctl grid`"
        )
