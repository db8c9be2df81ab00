"""The NFE of a request before it is sampled, and the effect of its guidance interval."""

import torch
from pydantic import BaseModel

from diffusion.process.process_registry import build_process
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.sampling_steps import call_times, count_nfe
from serving.loaded_model import ServedModel
from serving.requests import SampleRequest


class NfePreview(BaseModel):
    """NFE per image: `nfe`, and `everywhere` if guidance applied at every time.

    `questions` counts the times at which the sampler calls the denoiser, `guided` those with guidance.
    `lowest` and `highest` are σ/α at the last and the first of these times.
    """

    nfe: int
    everywhere: int
    questions: int
    guided: int
    lowest: float
    highest: float


def nfe_preview(model: ServedModel, request: SampleRequest) -> NfePreview:
    """Return the NFE of the request without sampling; raise UsageError as for images."""
    settings, config = model.resolve(request), model.artefact.process
    check_settings(model.artefact, settings)
    process = build_process(config)
    times = call_times(settings, process)
    levels = process.noise_level(torch.tensor([max(times), min(times)])).tolist()
    return NfePreview(
        nfe=count_nfe(settings, config),
        everywhere=count_nfe(settings.guided_everywhere(), config),
        questions=len(times),
        guided=sum(guidance_weight(settings, process, t) > 0 for t in times),
        highest=levels[0],
        lowest=levels[1],
    )
