"""The preview of a training: images by its raw and its EMA weights, above real ones."""

from pathlib import Path

import numpy as np
from torch import nn

from diffusion.images.pictures import enlarge, grid, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import ImageStore
from diffusion.model.model_file import LoadedModel
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings, completed
from diffusion.report.sample_pictures import real_images
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.sample.low_res import RealImages, pixelated
from diffusion.system.files import write_atomic
from diffusion.train.plan import DenoiserPlan, plan_artefact

PREVIEW_STEPS = 20  # DDIM steps of a preview
CONSISTENCY_SIGMA = 80.0  # the noise level from which consistency is sampled: tuning seldom sees higher ones


def write_preview(
    path: Path, plan: DenoiserPlan, network: nn.Module, ema: nn.Module, real: ImageStore | None = None
) -> None:
    """Write a PNG with ten images by the raw weights, by their EMA, and `real` ones of the same classes.

    Of a network that enlarges images they are the originals, and the low resolutions are above.
    """
    artefact = plan_artefact(plan)
    settings = _preview_settings(artefact.process)
    indices = range(10)
    device = next(network.parameters()).device
    size, source = artefact.network.low_res_size, None if real is None else RealImages(real)
    rows, wanted = [], image_condition(LoadedModel(ema, artefact), settings, indices, Guides(real=source))
    for weights in (network, ema):
        images = generate(LoadedModel(weights, artefact), settings, indices, wanted, device)
        rows.append(to_nhwc(images))
    if source is not None and size is not None:
        originals = source.store.images[source.rows(indices)]
        rows = [pixelated(originals, size), *rows, originals]
    elif real is not None:
        labels = None if wanted.labels is None else wanted.labels.tolist()
        rows.append(real_images(real, labels, len(indices)))
    picture = enlarge(grid(np.concatenate(rows), columns=len(indices)), artefact.network.size)
    write_atomic(path, lambda file: file.write(png_bytes(picture)))


def _preview_settings(process: ProcessConfig) -> SampleSettings:
    """Return DDIM in 20 steps, or for an objective of consistency its sampler in two."""
    if OBJECTIVES[process.loss].is_consistency:
        highest = {"sigma_max": min(build_process(process).sigma_max, CONSISTENCY_SIGMA)}
        return SampleSettings(sampler="consistency", steps=2, spacing="karras", spacing_options=highest)
    steps = min(PREVIEW_STEPS, process.max_steps)
    return completed(SampleSettings(steps=steps), process.schedule)
