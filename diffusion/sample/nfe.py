"""At which times a sampler asks, and so how often the network sees an image."""

import torch

from diffusion.process.denoiser_output import Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import check_timesteps, spaced_timesteps
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.sampler import DenoiserCall, sent


def sampling_grid(settings: SampleSettings, process: NoiseProcess) -> TimeGrid:
    """The times that the settings walk along; UsageError where the process has no such."""
    if settings.timesteps is None:
        return process.grid(spaced_timesteps(settings.spacing, settings.steps, process.timesteps))
    return process.grid(check_timesteps(settings.timesteps, process.timesteps))


@torch.no_grad()
def call_times(settings: SampleSettings, process: NoiseProcess) -> list[float]:
    """The time of each question of the sampler, in their order, found by a walk of a single pixel.

    What a sampler computes by beside images are plain numbers, so that no image changes its questions.
    UsageError as its own.
    """
    pixel = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    walk = build_sampler(settings)(sampling_grid(settings, process), pixel, lambda: pixel)
    times: list[float] = []
    event = next(walk, None)
    while event is not None:
        answer = None
        if isinstance(event, DenoiserCall):
            times.append(event.t)
            answer = Prediction(pixel, pixel, pixel)
        event = sent(walk, answer)
    return times


def count_nfe(settings: SampleSettings, config: ProcessConfig) -> int:
    """How often the network sees an image by these settings, within the process of that section.

    Once at each question of the sampler, and twice where guidance applies.
    """
    if settings.evaluations is not None:
        return settings.evaluations
    process = build_process(config)
    return sum(1 + (guidance_weight(settings, process, t) > 0) for t in call_times(settings, process))
