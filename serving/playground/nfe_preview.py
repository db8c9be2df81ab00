"""What an interval of guidance means for a request: at how many questions it holds, and what that saves."""

import torch
from pydantic import BaseModel

from diffusion.process.process_registry import build_process
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.sampling_steps import call_times, count_nfe
from serving.loaded_model import ServedModel
from serving.requests import SampleRequest


class NfePreview(BaseModel):
    """Network evaluations an image, and those if guidance applied everywhere; the questions of the sampler.

    Of these `guided` are asked twice. `lowest` and `highest` are σ/α at the last and at the first of them.
    """

    evaluations: int
    everywhere: int
    questions: int
    guided: int
    lowest: float
    highest: float


def nfe_preview(model: ServedModel, asked: SampleRequest) -> NfePreview:
    """What the request would cost, without making anything; UsageError as for images."""
    settings, config = model.meant(asked), model.artefact.process
    check_settings(model.artefact, settings)
    process = build_process(config)
    times = call_times(settings, process)
    levels = process.noise_level(torch.tensor([max(times), min(times)])).tolist()
    return NfePreview(
        evaluations=count_nfe(settings, config),
        everywhere=count_nfe(settings.guided_everywhere(), config),
        questions=len(times),
        guided=sum(guidance_weight(settings, process, t) > 0 for t in times),
        highest=levels[0],
        lowest=levels[1],
    )
